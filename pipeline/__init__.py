"""Pipeline: the command line, the DVC and Kubeflow graphs, submission."""
