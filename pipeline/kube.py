"""A Kubernetes API: the cluster that this machine's kubeconfig names, or that this pod runs in."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.errors import Stopped, UserError

SECONDS = 30


def connect(kubeconfig: Path | None = None, context: str = "") -> Any:
    """The client of a cluster. Raises UserError when there is neither a kubeconfig nor a pod around us."""
    from kubernetes import client, config

    try:
        if kubeconfig is None and not context:
            try:
                config.load_incluster_config()
                return client.ApiClient()
            except config.ConfigException:
                pass
        # The library reads the variable when it is imported, which may be too early.
        file = str(kubeconfig or "") or os.environ.get("KUBECONFIG") or None
        return config.new_client_from_config(file, context or None)
    except (config.ConfigException, OSError) as error:
        raise UserError(
            f"{kubeconfig or '~/.kube/config'}: no cluster ({error}); name a file with --kubeconfig or KUBECONFIG"
        ) from None


@contextmanager
def asked(what: str) -> Iterator[None]:
    """Say plainly what went wrong while the cluster was asked to `what`. Raises UserError, Stopped when it is away."""
    import urllib3
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        raise UserError(f"the cluster refused to {what} ({error.status} {error.reason}): {reason(error)}") from None
    except urllib3.exceptions.HTTPError as error:
        raise Stopped(f"the cluster did not {what}: {str(error)[:200]}; check the network and the kubeconfig") from None


def reason(error: Any) -> str:
    """What the API says in the body of an error, in one line."""
    try:
        return str(json.loads(error.body)["message"])[:300]
    except (TypeError, ValueError, KeyError):
        return str(error.body or error.reason)[:300]
