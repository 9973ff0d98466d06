"""Words that stand beside a number and change what it says: scales, units, comparisons, negations, months."""

from __future__ import annotations

import re

from nslora.tools.rewards.denials import DENIED_AFTER, FOREIGN

_MARK_END = r"(?=[.;]\s|[.;]?\s*\Z|\s[(\[]|[。！？\n])"
MARKS = re.compile(
    r"(?i)(?:####|(?<!wrong )(?<!incorrect )(?<!not the )\banswer(?:\s+is\b|\s*:|\s*=)+|"
    r"答案(?:是|为|為|[:：])+|答えは|คำตอบ(?:คือ|:)|정답은)\s*"
    rf"(\S.*?){_MARK_END}"
)

SCALES = {
    "millionen": "1e6", "milliarden": "1e9", "millones": "1e6", "milliards": "1e9", "mio": "1e6", "mrd": "1e9",
    "hundred": "1e2", "thousand": "1e3", "million": "1e6", "billion": "1e9", "trillion": "1e12", "mn": "1e6",
    "bn": "1e9", "lakhs": "1e5", "lakh": "1e5", "crores": "1e7", "crore": "1e7", "dozen": "12",
    "百": "1e2", "千": "1e3", "万": "1e4", "萬": "1e4", "亿": "1e8", "億": "1e8", "兆": "1e12",
    "백": "1e2", "천": "1e3", "만": "1e4", "억": "1e8", "พัน": "1e3", "หมื่น": "1e4", "แสน": "1e5", "ล้าน": "1e6",
}  # fmt: skip
SCALES_ATTACHED = {"k": "1e3", "K": "1e3", "M": "1e6", "bn": "1e9", "mn": "1e6"}

# Units, each under its first name.
_SAME_UNIT = """
km kilometre kilometres kilometer kilometers 公里 千米 キロメートル; m metre metres meter meters 米 メートル เมตร;
cm centimetre centimetres centimeter centimeters 厘米 センチ; mm millimetre millimetres millimeter millimeters 毫米;
mile miles mi; ft foot feet; in inch inches; yd yard yards; kg kilogram kilograms 公斤 千克 キログラム;
g gram grams 克 グラム; mg milligram milligrams; lb lbs pound pounds; oz ounce ounces; t ton tons tonne tonnes 吨;
l L litre litres liter liters 升 リットル; ml mL millilitre millilitres milliliter milliliters; gallon gallons gal;
s sec second seconds 秒; ms millisecond milliseconds; min minute minutes 分钟; h hr hrs hour hours 小时 時間;
day days 天; week weeks 周; month months 个月; year years 年; $ dollar dollars USD usd 美元 ドル ดอลลาร์; cent cents ¢;
€ euro euros EUR 欧元 ユーロ; GBP £; ¥ yen 円 日元 JPY; 元 yuan RMB CNY; ₹ rupee rupees INR; ° degree degrees 度;
°C; °F; W; kW; MW; mW; V; mV; kV; A; mA; Hz; kHz; MHz; GHz; J; kJ; Pa; kPa; N; K; mol; KB; MB; GB; TB; mph; km/h; m/s;
kmh; baht บาท; won 원
"""
UNITS = {word: words.split()[0] for words in _SAME_UNIT.split(";") for word in words.split()}
LENGTHS = [word for word, unit in UNITS.items() if unit in ("km", "m", "cm", "mm", "mile", "ft", "in", "yd")]
UNITS |= {
    before + word: f"{power} {UNITS[word]}"
    for power, names in (("square", ("square ", "sq ", "sq. ")), ("cubic", ("cubic ", "cu ", "cu. ")))
    for before in names
    for word in LENGTHS
}
_UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
_LATIN = "a-zA-Z\u00c0-\u024f"
# A Latin unit ends where its letters end; a Han unit has no such end.
UNIT_WORD = re.compile(rf"\s*-?({_UNIT})(?:(?<=[{_LATIN}])(?![{_LATIN}\d_])|(?<![{_LATIN}]))", re.IGNORECASE)

_COMPARED = (
    r"(?:less|more|fewer|greater|lower|higher|larger|smaller|bigger|other|rather|older|younger)\s+than(?:\s+or\s+equal\s+to)?"
    r"|at\s+(?:least|most)|under|over|above|below|"
    r"(?<!add )(?<!adds )(?<!added )(?<!adding )(?<!sum )(?<!sums )(?<!comes )(?<!came )up\s+to|"
    r"upwards?\s+of|exceed(?:s|ing)?|beyond|almost|nearly|"
    r"(?:a\s+)?(?:minimum|maximum)\s+of|different\s+from|unequal\s+to|as\s+(?:many|few|much|little)\s+as|close\s+to|(?:anything|everything|all)\s+but|"
    r"no\s+(?:more|less|fewer)\s+than|greater|bar|except(?:\s+for)?|within|instead\s+of|far\s+from|used\s+to\s+be"
)
COMPARED_BEFORE = re.compile(
    rf"(?:\b(?:{_COMPARED})\s+(?:(?:the|a|of|number|exactly|about|only|just)\s+)*|(?:[<>≤≥≠±]|!=)=?\s*"
    r"|(?:小于|大于|少于|多于|超过|不到|至少|至多|最多|最少|不足|低于|高于|不等于|小於|大於|少於|超過|"
    r"最大で?|少なくとも|多くとも|น้อยกว่า|มากกว่า|อย่างน้อย|ไม่ถึง|ไม่เกิน|เกิน|최소|최대|약간)\s*)[$€£¥₹]?\s*\Z",
    re.IGNORECASE,
)
NEGATED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|except|without|(?:wrong|incorrect|false)(?:\s+\w+)?(?:\s*:)?|hardly|barely|scarcely|"
    rf"{FOREIGN}|no\s+(?:longer|one)|nobody|nothing|"
    r"(?:is|are|was|were|do|does|did|ca|could|wo|would|should|has|have|had|must|need|ai)n['’]?t)(?:\b|(?<=:))"
    r"(?!\s+only)(?:\s+(?!but\b|so\b)[\w'’]+){0,3}\s*|\bno\s+|(?:不是|没有|沒有|不为|並非|并非|非|ไม่ใช่|ไม่|아니라)\s*)[$€£¥₹]?\s*\Z",
    re.IGNORECASE,
)
COMPARED_AFTER = re.compile(
    rf"\s*%\s*of\b|\s+(?:squared|cubed|factorial)\b|!|\+(?!\s*\S)|\+(?=[\s,.])(?!\s*[\d(\\a-z])|[-\s]*ish\b|\s*(?:[^\W\d]+\s+)?or\b|-?fold\b|(?:\s+[^\W\d]+)?(?:{DENIED_AFTER})"
    r"|\s+(?:and\s+counting|too\s+(?:many|much|few|little)|up|upwards?|onwards?)\b|\s*(?:[<>≤≥≠±]|!=)|\s+and\s+(?:above|below|over|under|up)\b|\s*[ap]\.?m\b|\s*(?:o['’]clock|noon|midnight)\b"
    r"|\s*[人个個名元]?(?:以上|以下|以内|未満|超|左右|多|余|餘|ではない|ではありません|じゃない|でない|不对|不對|或|か\d|を超|を下回)|\s*[명개원]?\s*(?:이상|이하|미만|초과)|\s*ขึ้นไป"
    r"|\s*(?:at|or)\s+(?:least|most|more|less)\b|\s*[-–—~〜～]\s*(?:\d|\Z)|\s*(?:\.{2,3}|…)\s*\d|:\d|[)\]]+!|[^.!\n]{0,40}[?？]|\s+(?:[^\W\d]+\s+)?below\s+zero\b",
    re.IGNORECASE,
)
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?)"
)
MONTHS = re.compile(rf"(?:of\s+)?{_MONTH}")
MONTH_BEFORE = re.compile(rf"\b{_MONTH}\.?\s+(?:\d{{1,2}}(?:st|nd|rd|th)?,?\s+)?\Z|\d\s*[年月時时点點]\s*\Z")
MONTH_AFTER = re.compile(rf"\s+{_MONTH}\b|\s*月")
# Between two numbers: they are a range, a list, a ratio, a time, or two parts of one quantity.
JOINED = re.compile(
    rf"\s*(?:{_UNIT}|[^\W\d]+|)\s*(?:,\s*)?(?:\b(?:and|or|nor|to|through|until|till|by|times|plus|minus|over|per|vs\.?|versus|of|"
    rf"out\s+of|divided\s+by|multiplied\s+by|mod|maybe|and/or|or\s+maybe|or\s+perhaps)\b|[-–—~〜～:±&]|\.\.\.?|…|至|到|或者?|和|と|か|や|から|หรือ|ถึง|และ)"
    rf"\s*(?:[^\W\d]\s*[=:]\s*)?[$€£¥₹]?\s*|\s*(?:{_UNIT}|{'|'.join(SCALES)}|k|x|['′])\s*|\s+|\s*[,;]\s*(?:and\s+)?[a-z]\s*=\s*",
    re.IGNORECASE,
)
FUNCTION_BEFORE = re.compile(
    r"\\?\b(?:log|ln|lg|exp|sin|cos|tan|cot|sec|csc|arc\w+|abs|(?<!\\)sqrt|f|g|h|mod)\s*(?:\(|\{|_\S+\s)?\s*\Z|"
    r"\b(?:root|factorial|square|cube|logarithm|sine|cosine|negation|opposite|complement|half|double|twice|triple|third|quarter|reciprocal|inverse|"
    r"negative|sum|product)\s+(?:of\s+)?\Z",
    re.IGNORECASE,
)

# Of a bare difference, "42 more": the number is only a part of what is meant. "She needs 42 more apples" counts them.
DIFFERENCE = re.compile(r"\s+(?:more|less|fewer)\b(?!\s+than)[^.!?\n]*[.!]?\s*\Z", re.IGNORECASE)
NO_VERB_BEFORE = re.compile(r"(?:\A|[:=]|\b(?:is|are|was|were|it['’]s|be))\s*\Z", re.IGNORECASE)
# "The answer is 42!" is no factorial, unlike "10!" and "10! ways".
EXCLAIMED = re.compile(
    r"((?:[^\W\d_]{2,}|['’]s)\W{1,4}[$€£¥₹]?[-\d.,]*\d)!+(?=[\s\"')]*\Z|\s+[A-Z])|(?<=\d)!{3,}(?=\s|\Z)"
)

_IN_ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_WORDS = _IN_ENGLISH.split()
_VALUES = {word: n if n < 20 else 10 * (n - 18) for n, word in enumerate(_WORDS)} | {"a": 1, "dozen": 12}
_ONES, _TEENS, _TENS = ("|".join(_WORDS[start:end]) for start, end in ((1, 10), (10, 20), (20, 28)))
_POWERS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SMALL = rf"(?:(?:{_TENS})(?:[\s-]+(?:{_ONES}))?|{_TEENS}|{_ONES})\b"
_HUNDREDS = rf"(?:(?:{_SMALL}|a)\s+hundred(?:(?:\s+and)?\s+{_SMALL})?|{_SMALL})"
_IN_WORDS = re.compile(
    rf"\b(?:zero|a\s+dozen|(?:{_HUNDREDS}|a(?=\s+(?:thousand|[mbtr]+illion)))"
    rf"(?:\s+(?:thousand|[mbtr]+illion)\b(?:,?(?:\s+and)?\s+{_HUNDREDS})?)*)(?![\w'’]|-\w)",
    re.IGNORECASE,
)
_LONE_ONE = re.compile(r"(?:\A|[:=]|\b(?:is|exactly|only|just))\W*\Z", re.IGNORECASE)  # unlike "no one", "this one"
_THERE_IS = re.compile(r"\bthere\s*(?:['’]s|is|are|was|were)\s+(?:exactly\s+|only\s+|just\s+)?\Z", re.IGNORECASE)


def _counts_one(before: str, after: str) -> bool:
    """Whether "one" is a number here: alone ("It is one."), or of one noun ("There is one apple.")."""
    return bool(
        (_LONE_ONE.search(before) and re.match(r"\W*\Z", after))
        or (_THERE_IS.search(before) and re.match(r"\s+\w+\W*\Z", after))
    )


def in_digits(text: str) -> str:
    """Write the one English number of a text in digits; the text unchanged if it has digits, or several numbers."""
    if re.search(r"\d", text):
        return text
    if len(han := list(_IN_HAN.finditer(text))) == 1:
        return _han_in_digits(text, han[0])
    found = list(_IN_WORDS.finditer(text))
    if len(found) != 1:
        return text
    start, end = found[0].span()
    words = re.findall(r"[a-z]+", found[0].group().lower())
    behind = re.match(r"[\s-]+(and\s+a\s+half|hal(?:f|ves)|thirds?|quarters?|fourths?)\b", text[end:], re.IGNORECASE)
    if words == ["one"] and not behind and not _counts_one(text[:start], text[end:]):
        return text
    if not behind and re.match(r"[\s-]+(?:point|\w+ths?)\b", text[end:], re.IGNORECASE):
        return text
    total = part = 0
    for word in words:
        if word == "hundred":
            part *= 100
        elif word in _POWERS:
            total, part = total + part * _POWERS[word], 0
        elif word == "dozen":
            part = 12
        else:
            part += _VALUES.get(word, 0)
    number = str(total + part)
    if behind:
        name = behind[1].lower()
        below = next(n for letter, n in (("h", 2), ("t", 3), ("q", 4), ("f", 4)) if name[0] in (letter, "a"))
        number = f"{number}.5" if name[0] == "a" else f"{number}/{below}"
        end += behind.end()
    return f"{text[:start]}{number}{text[end:].replace('!', '.')}"


_HAN_DIGITS = {
    c: n for n, names in enumerate(("〇零", "一", "二两兩", "三", "四", "五", "六", "七", "八", "九")) for c in names
}
_HAN_TENS, _HAN_GROUPS = {"十": 10, "百": 100, "千": 1000}, {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_IN_HAN = re.compile(f"[{''.join((*_HAN_DIGITS, *_HAN_TENS, *_HAN_GROUPS))}]+")
_HAN_BEFORE = re.compile(r"(?:\A|[是为為有共得于於答：:=，。、はが\s])[\s*「]*\Z")
_HAN_AFTER = re.compile(r"[\s*」]*(?:です|だ|[。！，,.!?]|\Z)")
_HAN_COUNTED = re.compile(r"\s*(?:[个個人只本元円块塊名天年条條件匹台岁歳度枚つ]|公里|美元|小时|分钟)")


def _han_in_digits(text: str, run: re.Match[str]) -> str:
    """Write a Han numeral in digits if it stands as a number: 三 and 三个苹果, but not 三角形 and 一定."""
    before, after = text[: run.start()], text[run.end() :]
    counts = len(run.group()) > 1 or run.group() != "一"
    if not _HAN_AFTER.match(after) and not (counts and _HAN_COUNTED.match(after)):
        return text
    # After other Han letters, only what denies or compares it may stand, which is read later: 不是三, 不到三.
    if not _HAN_BEFORE.search(before) and not COMPARED_BEFORE.search(before) and not NEGATED_BEFORE.search(before):
        return text
    if len(run.group()) > 1 and all(c in _HAN_DIGITS for c in run.group()):  # 二〇二四
        return f"{before}{''.join(str(_HAN_DIGITS[c]) for c in run.group())}{after}"
    total = section = digit = 0
    for c in run.group():
        if c in _HAN_DIGITS:
            digit = _HAN_DIGITS[c]
        elif c in _HAN_TENS:
            section, digit = section + (digit or 1) * _HAN_TENS[c], 0
        else:
            total, section, digit = (total + section + digit) * _HAN_GROUPS[c], 0, 0
    return f"{before}{total + section + digit}{after}"
