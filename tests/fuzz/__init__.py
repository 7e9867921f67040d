"""Fuzz targets in Python: functions of bytes, for atheris (``make fuzz``) and for the replay of corpora."""
