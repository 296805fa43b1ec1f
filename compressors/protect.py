"""What a shortened text must not lose: the words that turn its meaning round, what can be checked, what breaks in half.

`protected_spans` finds negations, comparatives, conditions, numbers with their units, names, identifiers, code, tables
and quotations, by rules: no model, about half a second for a million characters. Function words are known in English,
German, French, Spanish, and the commonest of Italian, Portuguese, Dutch, Russian, Chinese, Japanese and Arabic; all at
once, because texts mix languages and a word too many costs little. Numbers, code, tables and quotation marks are
recognised in any language; names where a script has capital letters. What becomes of the spans is for `compression.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .compression import Ints, unspaced

Kind = Literal["negation", "comparative", "condition", "number", "name", "identifier", "code", "table", "quotation"]
RANKS: dict[Kind, int] = {
    "negation": 3,
    "comparative": 3,
    "condition": 3,
    "number": 3,
    "name": 2,
    "identifier": 2,
    "code": 1,
    "table": 1,
    "quotation": 1,
}
"""What gives way first where the budget is too small for everything: the lowest."""
KINDS: tuple[Kind, ...] = tuple(RANKS)


@dataclass(frozen=True, slots=True)
class Protected:
    """`text[start:end]` is to be kept, whole."""

    start: int
    end: int
    kind: Kind


def protected_spans(text: str, kinds: Collection[Kind] = KINDS) -> list[Protected]:
    """The stretches that must survive, by start; those of different kinds may overlap (a number in a table)."""
    found: list[Protected] = []
    if "code" in kinds:
        found += _matches(_CODE, text, "code")
    if "table" in kinds:
        found += _matches(_TABLE, text, "table")
    if "quotation" in kinds:
        found += _matches(_QUOTATION, text, "quotation")
    if "identifier" in kinds:
        for sign, pattern in _IDENTIFIERS.items():
            if sign in text:
                found += _matches(pattern, text, "identifier")
    if "number" in kinds:
        found += _numbers(text)
    found += [span for span in _words(text) if span.kind in kinds]
    found.sort(key=lambda span: (span.start, -span.end))
    reached: dict[Kind, int] = {}
    outermost = []  # of each kind: "least" in "at least" is nothing of its own
    for span in found:
        if span.end > reached.get(span.kind, -1):
            reached[span.kind] = span.end
            outermost.append(span)
    return outermost


def mark(starts: Ints, ends: Ints, protected: Sequence[Protected]) -> tuple[Ints, Ints]:
    """What protection means for units: their ranks and groups, as `compression.Units` wants them.

    starts, ends: shape (n,), ascending and not overlapping. A unit that a span touches is protected. The units of the
    outermost span around them are one group; a group of one unit is none.
    Returns ranks and groups, int64 of shape (n,).
    """
    ranks, groups = np.zeros(len(starts), np.int64), np.full(len(starts), -1, np.int64)
    first = np.searchsorted(ends, [span.start for span in protected], side="right").tolist()
    last = np.searchsorted(starts, [span.end for span in protected], side="left").tolist()
    taken, group = 0, -1  # units below `taken` have their outermost span, for spans come by start
    for span, a, b in zip(protected, first, last, strict=True):
        if a >= b:
            continue
        np.maximum(ranks[a:b], RANKS[span.kind], out=ranks[a:b])
        if a >= taken and b - a > 1:
            group += 1
            groups[a:b] = group
            taken = b
        elif a < taken < b:  # overlaps the span before: kept together with it
            groups[taken:b] = group
            taken = b
    return ranks, groups


def _matches(pattern: re.Pattern[str], text: str, kind: Kind) -> Iterator[Protected]:
    return (Protected(match.start(), match.end(), kind) for match in pattern.finditer(text))


def _numbers(text: str) -> Iterator[Protected]:
    """Figures with their currency, sign, scale and unit; names with figures (GPT-4, Q3)."""
    end = 0
    for match in _NUMBER.finditer(text):
        start = match.start()
        before = _BEFORE_NUMBER.search(text, max(end, start - 16), start)
        end = match.end()
        # In scripts without spaces the letters before a figure are another word.
        letters = before is not None and not any(map(unspaced, before.group()))
        yield Protected(before.start() if before and letters else start, end, "number")
    yield from _matches(_NUMERALS, text, "number")


# ---- layout ----------------------------------------------------------------------------------------------------------

_CODE = re.compile(
    r"""(?m: ^[ \t]{0,3} (?P<fence>`{3,}+|~{3,}+) [^\n]*+ \n (?: (?![ \t]{0,3}(?P=fence)) [^\n]*+ \n )*+
             (?: [ \t]{0,3} (?P=fence) [`~]*+ | \Z ) )
      | (?<!`) `(?!`) [^`\n]{1,200}+ ` (?!`)""",
    re.VERBOSE,
)
_TABLE = re.compile(
    r"""(?m: ^[ \t]*+ \| [^\n]*+ (?: \n [ \t]*+ \| [^\n]*+ )++ )           # Markdown
      | (?m: ^[^\n\t]++ \t [^\n]*+ (?: \n [^\n\t]++ \t [^\n]*+ ){2,}+ )    # columns set apart by tabs""",
    re.VERBOSE,
)
# On one line and not too long: a mark without its partner must not protect half a book.
_QUOTATION = re.compile(
    r"""(?<![\w"]) " (?=\S) [^"\n]{1,300}+ " (?!\w)
      | “ [^“”\n]{1,300}+ ” | „ [^„“”\n]{1,300}+ [“”] | « [^«»\n]{1,300}+ » | » [^«»\n]{1,300}+ «
      | 「 [^「」\n]{1,300}+ 」 | 『 [^『』\n]{1,300}+ 』""",
    re.VERBOSE,
)
# By the character that a text must hold to hold one: most hold none, and to look for it is nearly free.
_IDENTIFIERS = {
    "://": re.compile(r"""\bhttps?://[^\s<>"']*[^\s<>"'.,;:!?)]"""),
    "www.": re.compile(r"""\bwww\.[^\s<>"']*[^\s<>"'.,;:!?)]"""),
    "@": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}+@[\w-]++(?:\.[\w-]++)++"),
    "/": re.compile(r"(?<!\w)/(?:[\w.-]++/)++[\w.-]*+"),
    "_": re.compile(r"(?<![^\W_])[^\W_]++(?:_[^\W_]++)++(?:\(\))?+"),
}

# ---- numbers ---------------------------------------------------------------------------------------------------------

_MONTHS = (
    "jan(?:uary?)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?|januar|februar|märz|mai|juni|juli|oktober|dezember|janvier|février|mars|avril|juin"
    "|juillet|août|septembre|octobre|novembre|décembre|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre"
    "|octubre|noviembre|diciembre"
)
_SCALES = (
    "hundred|thousand|million|billion|trillion|dozen|k|m|bn|mn|tn|tausend|millione?n?|milliarden?|mio\\.?|mrd\\.?"
    "|mille|millions?|milliards?|mil|millones|millón|billones"
)
_UNITS = (
    "%|‰|°[CF]?|percent(?:age)?(?:[ ]points?)?|per[ ]cent|prozent|pour[ ]cent|por[ ]ciento|bps|basis[ ]points?"
    "|[kmcµn]?m|km/h|mph|kg|mg|g|lbs?|oz|tons?|tonnes?|tonnen|[kmgt]i?b|bits?|bytes?|[km]?hz|ghz|[kmg]?w|[kmg]wh|v|kv"
    "|ms|s|sec(?:onds?)?|min(?:utes?)?|hours?|hrs?|days?|weeks?|months?|years?|yrs?|decades?|centuries"
    "|sekunden?|minuten?|stunden?|tagen?|tage|wochen?|monaten?|monate|jahren?|jahre|secondes?|heures?|jours?|semaines?"
    "|mois|ans?|années?|segundos?|minutos?|horas?|días?|semanas?|meses|mes|años?"
    "|miles?|met(?:er|re)s?|feet|foot|ft|inch(?:es)?|acres?|hectares?|ha|lit(?:er|re)s?|l|ml|gallons?"
    "|dollars?|euros?|pounds?|cents?|yuan|rmb|yen|usd|eur|gbp|chf|am|pm|a\\.m\\.|p\\.m\\.|bc|ad|bce|ce|uhr"
    "|times|fold|x|tokens?|people|persons?|votes?|shares?|points?|degrees?"
)
# Begins with a digit, so that the search skips from digit to digit; what stands before it is found from there.
_NUMBER = re.compile(
    rf"""\d++ (?: (?: [.,:/’'–-] | [ \u00a0\u202f](?=\d{{3}}(?!\d)) ) \d++ )*+
        (?: st|nd|rd|th|er|re|ème|e|º|ª )?+
        (?: [ \u00a0\u202f-]? (?: {_SCALES} )(?![^\W_]) )?+
        [千万亿]*+ (?: [年月日天元人个個股岁歳円週] | 美元 | 公里 | 万円 )?+
        (?: [ \u00a0\u202f-]? (?: {_UNITS} | [€£¥$] )(?![^\W_]) (?: /[a-z]{{1,3}}\b )?+
          | [ ]? (?: {_MONTHS} )\b (?: ,?[ ]\d{{4}}\b )?+
          )?+""",
    re.VERBOSE | re.IGNORECASE,
)
_BEFORE_NUMBER = re.compile(
    rf"""(?: (?: [^\W\d_]{{1,12}} -? | (?<![^\W_]) (?: USD|EUR|GBP|CHF|RMB|US|AU|CA|HK ) [ ]? )?
          (?: [$€£¥₹][ ]? )? [-+−±~≈<>≤≥]{{0,2}} | (?<![^\W_]) (?: {_MONTHS} )\.?[ ] | [-+−±~≈<>≤≥][$€£¥₹] ) \Z""",
    re.VERBOSE | re.IGNORECASE,
)
_NUMERALS = re.compile(r"[零一二三四五六七八九十百千万亿〇]{2,}+|[½¼¾⅓⅔]")

# ---- words -----------------------------------------------------------------------------------------------------------


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NEGATIONS = _set("""
not no never none neither nor nobody nothing nowhere without cannot hardly scarcely barely rarely seldom nay aint cant
dont didnt doesnt isnt wasnt wont wouldnt couldnt shouldnt hasnt havent false lack lacks lacked lacking absent absence
deny denies denied fail fails failed refuse refuses refused prohibit prohibits prohibited forbidden
nicht nie niemals nichts niemand niemanden niemandem ohne weder nirgends nirgendwo nein keinesfalls keineswegs kaum
kein keine keiner keinen keinem keines
ne pas jamais rien aucun aucune aucuns aucunes sans ni non guère nul nulle nullement
nunca jamás nada nadie ningún ninguno ninguna ningunos ningunas sin tampoco
nessuno nessuna nessun niente nulla senza né não ninguém nenhum nenhuma nem niet geen nooit niets zonder
не нет ни никогда никто ничего без нельзя لا لم لن ليس ليست بدون غير नहीं
""")
_COMPARATIVES = _set("""
more less fewer most least better worse best worst higher lower highest lowest greater greatest larger largest smaller
smallest bigger biggest longer shorter earlier later than exceed exceeds exceeded exceeding below above minimum maximum
only solely exclusively mere merely almost nearly approximately roughly equal
mehr weniger mindestens höchstens größer größte größten kleiner kleinste höher niedriger besser schlechter länger kürzer
früher später maximal minimal nur lediglich ausschließlich wenigstens zumindest fast ungefähr
plus moins mieux pire meilleur meilleure supérieur supérieure supérieurs inférieur inférieure maximum minimum seulement
uniquement environ presque davantage
más menos mejor peor mejores peores mayor mayores menor menores máximo mínimo solo sólo solamente únicamente casi
superior inferior più meno mais meer minder больше меньше более менее только أكثر أقل
""")
_CONDITIONS = _set("""
if unless except excepting excluding provided whether otherwise until till although though however but despite instead
wenn falls sofern soweit außer solange sonst andernfalls vorausgesetzt ob obwohl jedoch aber trotz statt sondern bis
si sauf excepté hormis pourvu sinon jusque malgré cependant mais quoique
salvo excepto aunque pero sino hasta mientras se als tenzij если кроме однако но إذا إلا لكن
""")
_NUMBER_WORDS = _set("""
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands million millions billion
billions trillion dozen dozens half twice thrice double triple quarter zero
zwei drei vier fünf sechs sieben acht neun zehn elf zwölf zwanzig dreißig hundert tausend zweimal dreimal hälfte doppelt
deux trois quatre cinq sept huit neuf dix onze douze vingt trente cent mille moitié
dos tres cuatro cinco seis siete ocho nueve diez once doce veinte treinta cien ciento mitad
""")
_KNOWN: dict[str, Kind] = (
    dict[str, Kind]()
    | dict.fromkeys(_NUMBER_WORDS, "number")
    | dict.fromkeys(_CONDITIONS, "condition")
    | dict.fromkeys(_COMPARATIVES, "comparative")
    | dict.fromkeys(_NEGATIONS, "negation")
)
# Of several words, or too common a word on their own. Begin with a letter, so that the words can lead to them.
_PHRASES = re.compile(
    r"""(?: (?P<condition> as[ ]long[ ]as|in[ ]case|subject[ ]to|provided[ ]that|depending[ ]on|only[ ]if|even[ ]if
            |rather[ ]than|à[ ]moins|à[ ]condition|tant[ ]que|en[ ]cas|a[ ]menos[ ]que|siempre[ ]que|en[ ]caso)
          | (?P<comparative> at[ ]least|at[ ]most|up[ ]to|more[ ]than|less[ ]than|as[ ]\w{1,30}[ ]as|no[ ]more
            |\w{1,30}er[ ]than|bis[ ]zu|\w{1,30}er[ ]als|au[ ]moins|au[ ]plus|al[ ]menos|como[ ]máximo|como[ ]mínimo
            |por[ ]lo[ ]menos)
          | (?P<negation> no[ ]longer|no[ ]one|not[ ]yet|non[ -]\w{1,30}|nicht[ ]mehr|ne[ ]plus)
        ) (?!\w)""",
    re.VERBOSE | re.IGNORECASE,
)
_PHRASE_STARTS = _set("""
at up more less as no bis au al como por in subject provided depending only even rather à tant en a siempre not non
nicht ne
""")
_WORD = re.compile(r"[^\W\d_]+(?:['’.-][^\W\d_]+)*")
# Scripts without spaces: what negates is a part of what `_WORD` takes for one word.
_UNSPACED = re.compile(
    r"""(?P<negation> [不没無无未非勿莫否] | 沒有|ません|ない | なかった | ไม่ )
      | (?P<comparative> [更最] | 至少|至多|不超过|超过|超過|低于|高于|大于|小于|以上|以下|以内|少なくとも|だけ )
      | (?P<condition> 如果|若|除非|除了|但是?|只要|只有|否则|もし|ただし|場合|しかし )""",
    re.VERBOSE,
)
_SENTENCE_END = frozenset('.!?…:;\n"“”«»„()[]{}*#>|•–—-·。！？')
_LINKS = re.compile(
    r"[ ]?(?:of|de|la|le|du|des|del|di|da|do|dos|van|von|der|den|zu|y|&|['’]s|al|el|bin|ibn|the|of[ ]the)?[ ]"
)


def _words(text: str) -> Iterator[Protected]:
    """Negations, comparatives, conditions, numbers in letters, and names, in one pass over the words."""
    for match in _UNSPACED.finditer(text):
        yield Protected(match.start(), match.end(), match.lastgroup)  # type: ignore[arg-type]
    capitals: list[tuple[int, int, bool]] = []  # words with a capital; whether they begin a sentence
    small: set[str] = set()  # words in small letters, to tell a name from a word that begins a sentence
    n_words = 0
    for match in _WORD.finditer(text):
        n_words += 1
        word, start, end = match.group(), match.start(), match.end()
        lower = word.lower()
        if lower in _PHRASE_STARTS or lower.endswith("er"):
            phrase = _PHRASES.match(text, start)
            if phrase:
                yield Protected(start, phrase.end(), phrase.lastgroup)  # type: ignore[arg-type]
        kind = _KNOWN.get(lower)
        if kind is None and ("'" in word or "’" in word):
            plain = lower.replace("’", "'")
            if plain.endswith("n't") or plain.startswith("n'") or "'aucun" in plain:
                kind = "negation"
        if kind is not None:
            yield Protected(start, end, kind)
            small.add(lower)
        elif word == lower:
            small.add(lower)
        elif word[0].isupper() or word[1:] != lower[1:]:
            capitals.append((start, end, _begins_sentence(text, start)))
    yield from _names(text, capitals, small, n_words)


def _begins_sentence(text: str, start: int) -> bool:
    place = start - 1
    while place >= 0 and text[place] in " \t\u00a0'‘’":
        place -= 1
    return place < 0 or text[place] in _SENTENCE_END


def _names(text: str, capitals: list[tuple[int, int, bool]], small: set[str], n_words: int) -> Iterator[Protected]:
    """Runs of capitalised words that are not there only because a sentence begins."""
    inside = {text[a:b] for a, b, begins in capitals if not begins}
    # German writes every noun with a capital, a text in capitals every word: there one such word alone says nothing.
    common = len(small & _GERMAN) > 2 or len(capitals) > 0.5 * n_words
    run_start = run_end = -1
    size = 0
    telling = False  # whether the run holds a word that is a name by itself
    for a, b, begins in [*capitals, (len(text) + 2, len(text) + 2, True)]:
        word = text[a:b]
        joined = run_end >= 0 and a - run_end < 10 and _LINKS.fullmatch(text, run_end, a) is not None
        if not joined:
            if run_end >= 0 and (size > 1 or telling):
                yield Protected(run_start, run_end, "name")
            run_end, size, telling = -1, 0, False
        if a > len(text) or len(word) < 2 or (begins and word.lower() in small) or word.lower() in _CAPITAL_WORDS:
            if joined and (size > 1 or telling):
                yield Protected(run_start, run_end, "name")
            run_end, size, telling = -1, 0, False
            continue
        if run_end < 0:
            run_start = a
        run_end, size = b, size + 1
        mixed = any(map(str.isupper, word[1:])) and (not common or not word.isupper() or len(word) <= 5)
        telling = telling or mixed or (not common and (not begins or word in inside))


_GERMAN = _set("der und ist nicht den dem ein eine mit für auf von zu sich des auch wird im hat zum zur")
_CAPITAL_WORDS = _set("""
the this that these those there here what when where who why how which while and or a an as at by for from in on to
with it its he she they we you his her their our your my i'm i've i'd i'll it's that's is are was were be been has
have had do does did will would can could may might shall should must also then thus hence so yes der die das ein eine
und oder im am zum zur es er sie wir ich ist sind war le la les un une des et ou il elle ils nous vous ce cette dans
el los las una y o en de del se su con por para
""")
