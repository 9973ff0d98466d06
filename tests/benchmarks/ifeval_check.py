"""IFEval's instruction checks (Zhou et al. 2023, arXiv 2311.07911), as lm-evaluation-harness implements them."""

from functools import cache
from typing import Any

# These need data that NLTK downloads on first use; rows with one of them are left out.
NEEDS_DOWNLOAD = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})


@cache
def registry() -> dict[str, Any]:
    """The checks by id. Imported on first use: they need the extra `peers`."""
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    known: dict[str, Any] = INSTRUCTION_DICT
    return known


def usable(row: dict[str, Any]) -> bool:
    """Whether every instruction of a row can be checked without a download."""
    return not NEEDS_DOWNLOAD & set(row["instruction_id_list"])


def followed(question: str, reply: str, example: Any) -> tuple[float, str]:
    """Share of the row's instructions that the reply follows (strict), and descriptions of the others."""
    missed = []
    wanted = list(zip(example.fields["instruction_id_list"], example.fields["kwargs"], strict=True))
    for name, arguments in wanted:
        check = registry()[name](name)
        given = {key: value for key, value in arguments.items() if value is not None}
        description = check.build_description(**given)
        if "prompt" in check.get_instruction_args_keys():
            description = check.build_description(prompt=question)
        if not (reply.strip() and check.check_following(reply)):
            missed.append(description)
    return 1 - len(missed) / len(wanted), " ".join(missed)
