"""Convolutions as native code, which reads windows from the image itself."""
