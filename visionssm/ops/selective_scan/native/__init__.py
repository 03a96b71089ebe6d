"""The scan as a library in C, loaded with ctypes."""
