"""Where things live and in which form: DICOM in, a versioned dataset, a registry of models."""
