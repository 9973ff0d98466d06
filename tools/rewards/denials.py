"""Words by which a reply denies what it names, for the checks that read one number or one label out of a reply."""

import re

_NOT = r"(?:\bnot|n['’]?t)"
# Before the thing that they deny, in German, French, Spanish, Portuguese, Italian, Dutch, Russian, Polish, Nordic.
FOREIGN = (
    r"nicht|niemals|kein\w*|weder|pas|jamais|nunca|não|niet|не|nie|inte|ikke|ليس|"
    r"no\s+(?:es|son|era|fue)|non\s+(?:è|e|sono)"
)
# "It is false that the answer is 42": all that follows in its clause is denied.
CLAIM_DENIED = re.compile(
    rf"(?:\b(?:if|whether|unclear|uncertain|false|untrue|impossible|unlikely|no\s+way|no\s+chance|den(?:y|ies|ied)|disagree[sd]?|disput\w+|"
    rf"reject\w*|refut\w+|(?:wrong|incorrect|mistake)\s+(?:that|to)|(?<!\bno )(?<!without )(?<!without a )(?<!beyond )"
    rf"doubt\w*)\b|{_NOT}\s+(?:\w+ly\s+)?(?:true|right|correct|so|the\s+case|think|believe|say|claim|agree|accept|mean)\b)[^,;:=.!?\n]*\Z",
    re.IGNORECASE,
)
# What follows a thing that is denied: "42 is wrong", "42 can't be right".
DENIED_AFTER = (
    r"(?:\s+(?:is|was|are|were|be|would\s+be|must\s+be|seems?|looks?|sounds?|appears?)\s+(?:\w+ly\s+)?"
    r"(?:not|wrong|incorrect|false|untrue|unlikely|impossible|invalid|inaccurate|rejected|excluded|eliminated|ruled|out|"
    r"an?\s+(?:\w+\s+)?(?:mistake|error|lie|trap|distractor))\b|\s+(?:no\s+longer|fails?|failed)\b|\s+(?:cannot|(?:can|could|does|do|did|will|would|should|must|is|was|are|were)\s+not)\b|"
    r"\s+(?:ca|could|does|do|did|wo|would|should|must|is|was|are|were|ai)n['’]?t\b|"
    r"[^.!?\n]{0,60}\bbut\s+(?:(?:that|this|it)(?:\s+(?:is|was)|['’]s)\s*)?(?:(?:not|n['’]t)\s+(?:so|true|right|correct|"
    r"quite|it|the\s+answer)|(?:(?:is|was)\s+)?no\s+longer|wrong|incorrect|false|too)\b|"
    r"\s+(?:ist|war|wäre|sind)\s+(?:nicht|falsch|kein)|\s+n['’]est\b|\s+est\s+(?:faux|fausse|incorrect|erron)|"
    r"\s+(?:no|non|não)\s+(?:es|è|é|son)\b|\s+(?:es|è|é)\s+(?:fals|incorrect|errad|sbagliat)|"
    r"\s*(?:ไม่ใช่|不是|不对|不對|değil|नहीं|[명개원]?[가이은는]?\s*(?:아[닙니]|틀[렸리린])|(?:是|為|为)?(?:错|錯)|に?はなら?ない|になら?ない)|"
    r"\s*[(,]\s*(?:(?:is|was)\s+)?(?:wrong|incorrect|false)\b|\s+(?:is|was|are)\s+too\b|\s+lies?\s+outside\b|"
    r"\s+ha(?:s|ve|d)\s+been\s+(?:disprov|refuted|rejected|excluded|eliminated|ruled))"
)
