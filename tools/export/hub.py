"""The merged folder on the Hugging Face Hub, with a model card that says what it is and how it was measured."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nslora.tools.errors import ExportError, SettingsError, first_line
from nslora.tools.files import write_text
from nslora.tools.inference.weights import EMBEDDED_HUB_ID, HUB_ID
from nslora.tools.prompt import Prompt

CARD_FILE = "README.md"


def write_card(folder: Path, facts: Mapping[str, Any], prompt: str, licence: str | None) -> None:
    """Write the model card of a merged folder.

    Args:
        folder: The merged folder.
        facts: What its `nslora.json` says.
        prompt: The prompt's document.
        licence: Of the base, as the hub names it; None if it is not known.
    """
    from huggingface_hub import ModelCardData

    base = str(facts["base"])
    data = ModelCardData(
        base_model=base if HUB_ID.fullmatch(base) else None,
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["nslora", "lora"],
    )
    test = facts["test"]
    rows = [("task", facts["task"]), ("task, rows and reward, SHA-256", facts["task_hash"])]
    rows += [
        ("prompt", facts["prompt"]),
        ("adapter, SHA-256", facts["adapter_sha256"] or "none: the weights are the base's"),
    ]
    rows += [(f"{name} version", version) for name, version in facts["versions"].items()]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    licensed = "The licence is that of the base" + ("." if licence else ", which its own card names.")
    told, shown = _of_the_prompt(prompt)
    text = f"""---
{data.to_yaml()}
---

# {facts["run"]}

{base}, adapted by nslora: {told}

| {test["questions"]} test questions | all checks passed |
| --- | --- |
| base | {test["base"]:.3f} |
| this model | {test["result"]:.3f} |

The test split chose nothing; it was read at the end. {licensed}

| | |
| --- | --- |
{table}
{shown}"""
    write_text(folder / CARD_FILE, text)


def _of_the_prompt(prompt: str) -> tuple[str, str]:
    """What a card says of the prompt: how to ask, and the document itself, if the template sends one."""
    if prompt == Prompt().render():
        return "LoRA in its weights, and the prompt trained into them.\nSend questions alone, at temperature 0.", ""
    told = (
        "LoRA in its weights, and a prompt in its chat template.\nSend questions alone, at temperature 0. "
        "`nslora=false` among the template's variables leaves the prompt out."
    )
    fence = "`" * 6  # a prompt may hold fences of its own
    return (
        told,
        f"""
The prompt, which holds demonstrations from the train split:

{fence}
{prompt.rstrip()}
{fence}
""",
    )


def refuse_name(repository: str) -> None:
    """Raise SettingsError if this is no name of a repository."""
    if not HUB_ID.fullmatch(repository):
        raise SettingsError(f"--push {repository}: wanted a repository such as your-name/model.")


def licence_of(base: str) -> str | None:
    """The licence that the base's card on the hub names; None if that cannot be read."""
    if base == EMBEDDED_HUB_ID:
        return "apache-2.0"
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        card = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(base).card_data
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError, ValueError):
        return None
    return str(card.license) if card and card.license else None


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload a folder, and give its address.

    Args:
        folder: The merged folder, with its card.
        repository: Made if it is not there.
        public: Whether everyone may read a new repository.

    Raises:
        ExportError: If the hub does not take it.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="nslora")
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Exported by nslora")
    except (HfHubHTTPError, HTTPError, OSError, ValueError, RuntimeError) as error:
        raise ExportError(
            f"{repository} cannot be pushed ({first_line(error)}): log in with a token that may write (hf auth login), "
            f"and push again; {folder} is whole."
        ) from error
    return str(made)
