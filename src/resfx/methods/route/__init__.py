"""Methods in which a projection of an attention reads the same projection of earlier layers."""
