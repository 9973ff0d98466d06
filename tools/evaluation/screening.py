"""The first look at several prompts that one edit proposes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Screening:
    """Mean reward of each candidate of an edit on the same few train rows; none if there was only one.

    prompt_tokens: that each candidate adds to every row that is trained on and every reply that is served.
    """

    rewards: tuple[float, ...] = ()
    failing: int = 0
    passing: int = 0
    generated_tokens: int = 0
    forward_tokens: int = 0
    prompt_tokens: tuple[int, ...] = ()

    @property
    def best(self) -> int:
        """Number of the candidate to propose; if they tie, the one of fewest tokens, and then the editor's first."""
        numbers = range(len(self.rewards))
        tokens = self.prompt_tokens or (0,) * len(self.rewards)  # not known in a replay whose model is gone
        return min(numbers, key=lambda i: (-self.rewards[i], tokens[i]), default=0)

    def describe(self) -> str:
        if not self.rewards:
            return ""
        rewards = ", ".join(f"{reward:.2f}" for reward in self.rewards)
        return (
            f"; candidate {self.best + 1} of {len(self.rewards)}, screened on {self.failing} failing and "
            f"{self.passing} passing train rows (rewards {rewards})"
            + (f", adding {', '.join(map(str, self.prompt_tokens))} tokens to a row" if self.prompt_tokens else "")
        )
