"""The prompts of a run, one file each."""

from dataclasses import dataclass
from pathlib import Path

from nslora.tools.errors import DamagedError, PromptError
from nslora.tools.files import unless_changed, write_text
from nslora.tools.prompt import Prompt, parse


@dataclass(frozen=True)
class PromptStore:
    """Prompts on disk. A file is named by the hash of its prompt and never changes."""

    folder: Path

    def add(self, prompt: Prompt) -> str:
        """Write the prompt if it is new, and return its hash."""
        path = self.folder / f"{prompt.hash}.md"
        if not path.exists():
            write_text(path, prompt.render())
        return prompt.hash

    def get(self, name: str) -> Prompt:
        """The prompt with this hash. Raises DamagedError if its file is missing or has changed."""
        path = self.folder / f"{name}.md"
        try:
            prompt = _read_prompt(path)
        except OSError as error:
            raise DamagedError(
                f"No prompt {name} in {self.folder}: it was deleted, or the run's folder was moved in part."
            ) from error
        except PromptError as error:
            raise DamagedError(f"The prompt {path} is damaged ({error}).") from error
        if prompt.hash != name:
            raise DamagedError(f"The prompt {path} was changed: its content no longer has the hash in its name.")
        return prompt

    def all(self) -> list[Prompt]:
        """Every prompt of the run, by name."""
        return [self.get(path.stem) for path in sorted(self.folder.glob("*.md"))]


@unless_changed
def _read_prompt(path: Path) -> Prompt:
    return parse(path.read_bytes().decode("utf-8", "surrogatepass"))
