"""Words by which a reply denies what it names, for the checks that read one number or one label out of a reply."""

import re

_NOT = r"(?:\bnot|n['’]?t)"
# "It is false that the answer is 42": all that follows in its clause is denied.
CLAIM_DENIED = re.compile(
    rf"(?:\b(?:if|false|untrue|impossible|unlikely|no\s+way|no\s+chance|den(?:y|ies|ied)|disagree[sd]?|disput\w+|"
    rf"reject\w*|refut\w+|(?:wrong|incorrect|mistake)\s+(?:that|to)|(?<!\bno )(?<!without )(?<!without a )(?<!beyond )"
    rf"doubt\w*)\b|{_NOT}\s+(?:\w+ly\s+)?(?:true|right|correct|so|the\s+case|think|believe|say|claim|agree|accept|mean)\b)[^,;:=.!?\n]*\Z",
    re.IGNORECASE,
)
# What follows a thing that is denied: "42 is wrong", "42 can't be right".
DENIED_AFTER = (
    r"(?:\s+(?:is|was|are|were|be|would\s+be|must\s+be|seems?|looks?|sounds?|appears?)\s+(?:\w+ly\s+)?"
    r"(?:not|wrong|incorrect|false|untrue|unlikely|impossible|invalid|inaccurate|rejected|excluded|eliminated|ruled|out|"
    r"an?\s+(?:mistake|error|lie))\b|\s+(?:cannot|(?:can|could|does|do|did|will|would|should|must|is|was|are|were)\s+not)\b|"
    r"\s+(?:ca|could|does|do|did|wo|would|should|must|is|was|are|were)n['’]?t\b)"
)
