"""The vhost-user protocol over a recorder (``ringway.testing.recorder``); tests share ``helpers``."""
