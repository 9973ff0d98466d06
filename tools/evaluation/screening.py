"""The first look at several prompts that one edit proposes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Screening:
    """Mean reward of each candidate of an edit on the same few train rows; none if there was only one."""

    rewards: tuple[float, ...] = ()
    failing: int = 0
    passing: int = 0
    generated_tokens: int = 0
    forward_tokens: int = 0

    @property
    def best(self) -> int:
        """Number of the candidate to propose; the editor's first if they tie."""
        return self.rewards.index(max(self.rewards)) if self.rewards else 0

    def describe(self) -> str:
        if not self.rewards:
            return ""
        rewards = ", ".join(f"{reward:.2f}" for reward in self.rewards)
        return (
            f"; candidate {self.best + 1} of {len(self.rewards)}, screened on {self.failing} failing and "
            f"{self.passing} passing train rows (rewards {rewards})"
        )
