"""A Kubeflow Pipelines server: kfp's client with time-outs, a token never shown, and errors that say what to do."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from model.errors import Stopped, UserError

ENDPOINT = "KF_PIPELINES_ENDPOINT"  # kfp's own
TOKEN = "SIXSTREAM_KFP_TOKEN"
SECONDS = 30.0  # for one answer; kfp's client waits for ever
FORWARD = "kubectl -n kubeflow port-forward svc/ml-pipeline 8888"


class Away(Stopped):
    """The server does not answer or fails itself: the same command may succeed later (exit code 75)."""


class Gone(UserError):
    """The server knows no such thing."""


class Token:
    """A bearer token from an argument, a file or the variable SIXSTREAM_KFP_TOKEN.

    The file is read for every request: tokens of a cluster live for an hour, runs for a night.
    """

    def __init__(self, text: str, file: Path | None) -> None:
        if text and file is not None:
            raise UserError("give --token or --token-file, not both")
        self.text, self.file = text or os.environ.get(TOKEN, "") if file is None else "", file
        self.read()

    def read(self) -> str:
        """The token, empty where there is none. Raises UserError when the file cannot be read or is empty."""
        if self.file is None:
            return self.text.strip()
        try:
            token = self.file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.file}: no token can be read from it ({error})") from None
        if not token:
            raise UserError(f"{self.file}: is empty; write the token into it")
        return token

    def refresh_api_key_hook(self, config: Any) -> None:
        """What kfp's client calls before every request."""
        config.api_key["authorization"] = self.read()

    def hidden(self, text: str) -> str:
        """`text` without the token."""
        token = self.read()
        return text.replace(token, "…") if token else text


class Api:
    """One server and namespace. Every method raises UserError or Away with a remedy."""

    def __init__(
        self,
        endpoint: str = "",
        token: str = "",
        token_file: Path | None = None,
        namespace: str = "",
        ca: Path | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self.endpoint = (endpoint or os.environ.get(ENDPOINT, "")).rstrip("/")
        if not self.endpoint.startswith(("http://", "https://")):
            raise UserError(
                f"--endpoint {self.endpoint or '(none)'}: name the server as http://HOST:PORT or https://HOST/pipeline "
                f"(or in {ENDPOINT}); `{FORWARD}` makes it http://localhost:8888"
            )
        self.namespace, self.token, self.seconds = namespace, Token(token, token_file), seconds
        import warnings

        import kfp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # For the namespace `kubeflow` or none the constructor asks the server, five times, five seconds apart.
            self.client = kfp.Client(
                host=self.endpoint,
                namespace="-",
                credentials=self.token if self.token.read() else None,
                ssl_ca_cert=str(ca) if ca else None,
            )
        self.client._context_setting["namespace"] = namespace
        rest = self.client._run_api.api_client.rest_client
        unlimited = rest.request
        rest.request = lambda *values, **named: unlimited(*values, **{**named, "_request_timeout": (seconds, seconds)})

    @contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Say plainly what went wrong while it was asked to `what`; kfp's own prints go to standard error."""
        import kfp_server_api
        import urllib3

        try:
            with redirect_stdout(sys.stderr):
                yield
        except kfp_server_api.ApiException as error:
            raise self._explained(what, error.status or 0, _message(error)) from None
        except urllib3.exceptions.HTTPError as error:
            raise Away(f"{self.endpoint}: {self._unreachable(error)}") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.endpoint}: answered to {what} with something that is not the Kubeflow Pipelines API (a log-in "
                f"page?): {self.token.hidden(str(error))[:200]}; check the path of the address and the token"
            ) from None

    def healthz(self) -> bool:
        """Whether the server keeps users apart by namespaces. Raises UserError if so and none was given."""
        with self.asked("say whether it is well"):
            answer = self.client._healthz_api.healthz_service_get_healthz()
            if answer.multi_user is None:
                raise ValueError("no word of its users")
            several = bool(answer.multi_user)
        if several and not self.namespace:
            raise UserError(f"{self.endpoint}: serves several users; name your profile's namespace with --namespace")
        return several

    def version(self, package: Path, pipeline: str, name: str) -> tuple[str, str]:
        """(pipeline id, version id) of a package, uploaded unless this version is there."""
        with self.asked(f"take the pipeline {pipeline}"):
            equal = _equal("display_name", pipeline)
            found = self.client.list_pipelines(namespace=self.namespace or None, filter=equal).pipelines
            if found:
                pipeline_id = found[0].pipeline_id
            else:
                made = self.client.upload_pipeline(
                    str(package), pipeline_name=pipeline, namespace=self.namespace or None
                )
                pipeline_id = made.pipeline_id
            there = self.client.list_pipeline_versions(pipeline_id, filter=_equal("display_name", name))
            if there.pipeline_versions:
                return pipeline_id, there.pipeline_versions[0].pipeline_version_id
            version = self.client.upload_pipeline_version(str(package), name, pipeline_id=pipeline_id)
        return pipeline_id, version.pipeline_version_id

    def experiment(self, name: str) -> str:
        """The id of an experiment, made if it is not there."""
        with self.asked(f"make the experiment {name}"):
            return str(self.client.create_experiment(name, namespace=self.namespace or None).experiment_id)

    def start(self, experiment: str, name: str, version: tuple[str, str], account: str = "") -> str:
        """Make a run; its id."""
        with self.asked(f"start the run {name}"):
            made = self.client.run_pipeline(
                experiment, name, pipeline_id=version[0], version_id=version[1], service_account=account or None
            )
        return str(made.run_id)

    def run(self, run: str) -> Any:
        """A run as the server has it now. Raises Gone when it has none."""
        with self.asked(f"show the run {run}"):
            return self.client.get_run(run)

    def terminate(self, run: str) -> None:
        with self.asked(f"end the run {run}"):
            self.client.terminate_run(run)

    def log(self, run: str, node: str) -> str:
        """What a pod of a run printed, empty where the cluster keeps it no longer."""
        with self.asked(f"show the log of {node}"):
            try:
                answer = self.client._run_api.api_client.call_api(
                    "/apis/v1alpha1/runs/{run}/nodes/{node}/log",
                    "GET",
                    path_params={"run": run, "node": node},
                    auth_settings=["Bearer"],
                    _preload_content=False,
                    _return_http_data_only=True,
                )
            except Exception as error:
                if getattr(error, "status", 0) in (404, 500):  # 500: the pod is gone and nothing archived its log
                    return ""
                raise
            return bytes(answer.data).decode(errors="replace")

    def _explained(self, what: str, status: int, message: str) -> Exception:
        said = self.token.hidden(message)
        where = f" in namespace {self.namespace}" if self.namespace else ""
        if status == 401:
            return UserError(
                f"{self.endpoint}: asks who you are before it will {what} (401): {said}; give a token with "
                f"--token-file or in {TOKEN}, or a new one if it has expired"
            )
        if status == 403:
            return UserError(
                f"{self.endpoint}: this account may not {what}{where} (403): {said}; name your own namespace with "
                "--namespace, or ask for the role kubeflow-edit there"
            )
        if status == 404:
            return Gone(
                f"{self.endpoint}: cannot {what}{where}: not found (404): {said}; check the name and --namespace"
            )
        if status == 409:
            return UserError(
                f"{self.endpoint}: cannot {what}: something of that name is there (409): {said}; choose another"
            )
        if status == 429 or status >= 500:
            return Away(
                f"{self.endpoint}: could not {what} ({status}): {said}; try again, or look at the server: "
                "kubectl -n kubeflow logs deploy/ml-pipeline"
            )
        if status == 0:
            return UserError(f"{self.endpoint}: {said}; name the certificate authority with --ca")
        return UserError(f"{self.endpoint}: refused to {what} ({status}): {said}")

    def _unreachable(self, error: Exception) -> str:
        reason = getattr(error, "reason", None) or error
        text = f"{type(reason).__name__} {reason}"
        if "refused" in text:
            return f"connection refused; is the server running and its port forwarded (`{FORWARD}`)?"
        if "NameResolution" in text or "getaddrinfo" in text:
            return "there is no such host; check the address"
        if "Timeout" in text or "timed out" in text:
            return f"no answer within {self.seconds:g} s; check the address, the network policy and the server"
        return f"cannot be reached ({self.token.hidden(str(reason))[:200]})"


def _equal(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": 1, "key": key, "stringValue": value}]})  # 1: equals


def _message(error: Any) -> str:
    """What the server says in the body of an error, in one line."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        content = json.loads(body)
        body = str(content.get("message") or content.get("error") or body)
    except (ValueError, AttributeError):
        pass
    return " ".join((body or str(error.reason)).split())[:300]
