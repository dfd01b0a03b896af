"""Components: one typed function per step of the pipeline, with the files, parameters and tracking it needs."""
