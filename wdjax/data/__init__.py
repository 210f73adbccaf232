"""Data: in memory, from TFDS, streamed, and augmented on the device."""
