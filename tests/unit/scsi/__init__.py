"""The SCSI slow path over a data path in memory (``fake``) that really moves bytes."""
