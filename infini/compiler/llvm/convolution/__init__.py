"""Convolutions as native code: products that read windows from the image itself."""
