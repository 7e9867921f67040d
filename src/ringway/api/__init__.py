"""The host's API: HTTP and JSON on two unix sockets, one that may change things and one that may look.

``host`` does the work. Needs starlette, uvicorn and prometheus-client: ``pip install 'ringway[daemon]'``.
"""
