"""The Hugging Face Hub as a place to publish to: what is there, and one commit with all files of a model.

The token is the one that huggingface_hub finds: HF_TOKEN, or that of `hf auth login`. It is never an option, because
the options of a run are written down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from apdm.core.errors import UserError, first_line
from apdm.core.files import WEIGHT_SUFFIXES
from apdm.core.versions import VERSION

MESSAGE = "A model hardened by apdm"  # of a commit
TAG = "apdm"  # of the cards that this program writes
OF_THE_HUB = {".gitattributes"}  # files that the Hub itself puts into a new repository
INDEX_SUFFIX = ".index.json"  # of weights in several files
LICENCE = ("license", "license_name", "license_link")  # what a card says about it


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A repository to push to.

    Attributes:
        name: OWNER/NAME.
        public: whether it is to be public, if it is made.
        exists: whether it is there.
        head: its newest commit; None if it is not there.
        files: the names of its files.
    """

    name: str
    public: bool
    exists: bool = False
    head: str | None = None
    files: tuple[str, ...] = ()


NO_TOKEN = "there is no token for the Hugging Face Hub; set the environment variable HF_TOKEN, or run: hf auth login"


def check_name(name: str) -> None:
    """Raise UserError if NAME or OWNER/NAME cannot be a repository on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"hub_model_id is {name}, which is no name on the Hub: {first_line(error)}") from None


def why_not_asked() -> str | None:
    """Why the Hub cannot be asked about a repository, and how to mend it; None if it can."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it"
    return NO_TOKEN if get_token() is None else None


def check_destination(name: str, *, public: bool, overwrite: bool) -> Destination:
    """Check that a model can be pushed. Nothing is changed.

    Args:
        name: NAME or OWNER/NAME.
        public: whether the repository may be public.
        overwrite: whether it may hold what this program did not push.

    Raises:
        UserError: there is no token, it may not write, the Hub cannot be reached, or the repository cannot be used.
    """
    check_name(name)
    if get_token() is None:
        raise UserError(NO_TOKEN)
    api = _api()
    with _errors(f"push to {name}"):
        who = api.whoami()
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError("the token for the Hugging Face Hub may only read; set HF_TOKEN to one that may write")
        full = name if "/" in name else f"{who['name']}/{name}"
        try:
            info = api.model_info(full)
        except RepositoryNotFoundError:
            return Destination(name=full, public=public)
    files = tuple(sibling.rfilename for sibling in info.siblings or [])
    tags = [*(info.tags or []), *(_card_data(info).get("tags") or [])]
    foreign = [file for file in files if file not in OF_THE_HUB]
    if foreign and TAG not in tags and not overwrite:
        raise UserError(
            f"{full} on the Hub holds files that apdm did not push, such as {foreign[0]}; name another repository, or "
            "give --hub_overwrite true"
        )
    if not info.private and not public:
        raise UserError(
            f"{full} on the Hub is public; give --hub_public true, name another repository, or make it private there"
        )
    return Destination(name=full, public=public, exists=True, head=info.sha, files=files)


def make_repository(destination: Destination) -> None:
    """Make the repository, if it is not there. Raises UserError if the token's owner may not."""
    if not destination.exists:
        with _errors(f"make the repository {destination.name}"):
            _api().create_repo(destination.name, private=not destination.public, exist_ok=True)


def push_files(destination: Destination, files: Mapping[str, Path | bytes]) -> str:
    """Push files in one commit, and remove other weights from it, which would be loaded in place of the new ones.

    Args:
        destination: the repository, as `check_destination` found it.
        files: {name in the repository: the file, or its content}.

    Returns:
        The address of the repository.

    Raises:
        UserError: the Hub refuses it, or somebody else has pushed meanwhile.
    """
    make_repository(destination)
    operations: list[Any] = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in sorted(files.items())
    ]
    operations += [CommitOperationDelete(name) for name in outdated(destination.files, files)]
    api = _api()
    with _errors(f"push to {destination.name}"):
        try:
            api.create_commit(destination.name, operations, commit_message=MESSAGE, parent_commit=destination.head)
        except RepositoryNotFoundError:
            raise UserError(f"{destination.name} is no longer on the Hub; repeat the command") from None
    return f"{api.endpoint}/{destination.name}"


def outdated(there: tuple[str, ...], new: Mapping[str, object]) -> list[str]:
    """Weights in a repository that the new commit does not have."""
    return [name for name in there if name not in new and name.endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX))]


def licence_of(base_model: str) -> dict[str, str]:
    """Return what the card of a model on the Hub says about its licence; empty if nothing is known.

    Raises:
        UserError: the Hub cannot be reached.
    """
    try:
        with _errors(f"read the licence of {base_model}"):
            data = _card_data(_api().model_info(base_model))
    except RepositoryNotFoundError:
        return {}
    return {key: str(data.get(key)) for key in LICENCE if data.get(key)}


def _card_data(info: ModelInfo) -> dict[str, Any]:
    return {} if info.card_data is None else info.card_data.to_dict()


def _api() -> HfApi:
    return HfApi(library_name=TAG, library_version=VERSION)


@contextmanager
def _errors(action: str) -> Iterator[None]:
    """Turn what the Hub's library raises into one line. That a repository is not there is passed on as it is."""
    try:
        yield
    except (UserError, RepositoryNotFoundError):
        raise
    except OfflineModeIsEnabled:
        raise UserError(f"cannot {action}: HF_HUB_OFFLINE is set; unset it") from None
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        mends = {401: "the token is not valid; set HF_TOKEN anew, or run: hf auth login"}
        mends |= {403: "the token's owner may not do this; use another token, or another OWNER in hub_model_id"}
        mends |= {412: "somebody else has pushed meanwhile; look at the repository and repeat the command"}
        raise UserError(f"cannot {action}: {mends.get(code or 0) or first_line(error)}") from None
    except Exception as error:  # whatever the network makes of it
        raise UserError(f"cannot {action}: {first_line(error)}; check the network and repeat the command") from None
