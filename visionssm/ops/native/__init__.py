"""The scans as a library in C, loaded with ctypes."""
