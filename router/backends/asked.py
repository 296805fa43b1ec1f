"""What a question asks for, read from its wording in some twenty languages: a date, a name, a number, a summary.

Patterns only, no model. `router/question_type.py` tells policies how hard a question is; this tells what an answer
looks like. Choosing the sentence is left to `extractive.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Question words and other words of questions, which say what is asked for and not where it stands.
_EMPTY_WORDS = """
    a about according all also am an and any are article as at author be been being but by can could describe detail
    did do does doing document during each exactly explain for from given had has have how i if in into is it its list
    many me mention mentioned more most much my of on or our out paper passage passages please say says section should
    so some specific state stated tell text than that the their them then there these they this those to under up upon
    us was we were what when where which while who whom whose why will with would you your
    auf aus bei das dem den der des die dieser ein eine einem einen einer er es für hat hatte haben im ist mit nach sich
    sie sind sowie um und viel viele von vor wann war waren warum wegen welche welchem welchen welcher welches wem wen
    wer werden wie wird wo woher wohin womit wurde wurden zu zum zur
    al con cuál cuáles cuándo cuánta cuántas cuánto cuántos cómo de del dónde el en era esta está fue fueron ha la las
    lo los para por qué que quién quiénes se según ser son su sus tiene un una y
    à au aux ce cette combien comment dans du elle et est était il le les leur par pour pourquoi quand quel quelle
    quelles quels qui quoi sa ses sont sur une où
    che chi come cosa da dal dei della di dove e gli perché più quale quali quando quanti quanto sono
    como com das dem do dos em foi no na os onde porque qual quais quantos quantas quem uma um
    был была были было в во где для до ее ему если есть же за из и или их к как какая какие каким каких какого какой
    какое каком когда кто кого кем кому куда который мог на над не него о об он она они от по почему при с сколько со
    так такое то у чего чем что это
    ما ماذا من متى أين كيف كم لماذا هل هو هي في على إلى عن أي الذي التي كان كانت تم مع هذا هذه و
    क्या कौन कब कहाँ कैसे कितने कितनी क्यों किस किसने का के की को में है हैं था थे थी से पर ने और
    ne kim kimin nerede nasıl neden niçin kaç hangi bir ve bu ile için mi mı mu mü
    gì ai khi nào ở đâu bao nhiêu tại sao như thế là của và trong có được những các"""
_EMPTY = frozenset(_EMPTY_WORDS.split())
_EMPTY_PHRASES = re.compile(
    "什么时候|什么样|什么|何时|哪一年|哪年|哪里|哪儿|哪个|哪些|哪种|哪位|哪|谁|多少|为什么|为何|如何|怎么样|怎样|怎么|几个|是否|请问|有没有"
    "|根据|请|的|了|是|在|和|有|与|被|吗|呢|いつ|どこ|だれ|誰|何|なぜ|どの|どう|ですか|ますか|でしたか|は|が|を|に|の"
    "|เมื่อไหร่|เมื่อไร|เมื่อใด|อะไร|ที่ไหน|ใคร|อย่างไร|ทำไม|เท่าไหร่|เท่าไร|เท่าใด|กี่|ไหน|ใด|누구|언제|어디|무엇|왜|어떻게|얼마나"
)
_WHEN = re.compile(
    r"(?i)\b(?:when (?:was|were|did|had|has|will)|(?:what|which) (?:year|date|day|month|time|century|decade)"
    r"|wann|cuándo|quand|quando|когда|متى"
    r"|ne zaman|khi nào|(?:welche[mrs]?|in welchem) jahr|qué año|quelle année|каком году|kaç yılında)\b"
    r"|कब |何时|什么时候|哪一?年|いつ|何年|เมื่อไ|เมื่อใด|언제"
)
_WHO = re.compile(
    r"(?i)\b(?:who|whom|whose|which (?:person|player|author|actor|king|president)|wer|wem|wen|wessen|quién(?:es)?|qui"
    r"|chi|quem|кто|кого|кем|кому|من|مَن|kim)\b|कौन|किसने|谁|誰|だれ|ใคร|누구"
)
_HOW_MANY = re.compile(
    r"(?i)\b(?:how (?:many|much|old|long|far|high|tall|large|big|often|deep|wide)|what (?:percentage|percent|number"
    r"|amount|share|proportion|age|price|cost)|wie ?viele?|wie (?:hoch|alt|lang|groß|weit)|cuánt[oa]s?|combien"
    r"|quant[oie]|сколько|كم|kaç|bao nhiêu)\b|कितन|多少|几[个次年名位种岁]|何[人個年回]|กี่|เท่าไ|เท่าใด|얼마|몇"
)
_WHERE = re.compile(r"(?i)\b(?:where|(?:what|which) (?:city|country|place|town|state|location))\b")
_WHY = re.compile(
    r"(?i)\b(?:why|reasons?|cause[ds]?|warum|weshalb|por qué|pourquoi|perché|почему|لماذا|neden|niçin)\b"
    r"|क्यों|为什么|为何|なぜ|ทำไม|왜"
)
_OPEN = re.compile(
    r"(?i)\b(?:why|how (?!many|much|old|long|far|high|tall|large|big|often|deep|wide)|explain|describe|compare|contrast"
    r"|differen\w+|list|steps?|warum|wie (?!viel|hoch|alt|lang|groß|weit)|erklär\w*|beschreib\w*|por qué|cómo|explica"
    r"|pourquoi|comment|почему|как|لماذا|كيف|neden|nasıl)\b|为什么|如何|怎[么样]|解释|描述|比较|区别|なぜ|どのように|อย่างไร|ทำไม|어떻게|왜"
)
_SUMMARY = re.compile(
    r"(?i)\b(?:^(?:\w+ ){0,3}summari[sz](?:e|ing)|tl;?dr|key (?:points?|takeaways?|findings?)"
    r"|(?:^(?:(?:an?|the|short|brief|quick) )*|(?:give|write|provide|create|make|what(?:'s| is)|need|want)\b.{0,30}?\b)"
    r"(?:summary|overview|synopsis|recap|gist)(?! judg)|main (?:ideas?|points?|themes?|topics?|message|argument)"
    r"|what (?:is|are|was) (?:this|it|the (?:text|document|article|passage|paper|book|story|report)\w*) (?:all )?about"
    r"|zusammenfass\w*|fass\w* .{0,80} zusammen|überblick|worum geht|resum(?:en|ir)|^resum[aeo]|résum\w+|de quoi parle"
    r"|de qué trata|riassu\w+|кратко|резюм\w+|обобщ\w+|о чём|о чем|özetle\w*|tóm tắt)\b"
    r"|总结|概括|概述|摘要|主要内容|要約|まとめ|概要|요약|สรุป|ملخص|لخص|सारांश"
)
_DEFINITION = re.compile(
    r"(?i)^\W*(?:what(?:'s| is| are| was| were)|who(?:'s| is| was)|define|was (?:ist|sind)|wer (?:ist|war)"
    r"|qu[ée] (?:es|son)|quién (?:es|fue)|qu['’]est-ce que|qui (?:est|était)|что такое|кто такой|ما هو|ما هي|nedir) "
    r"(?:(?:an?|the|die|der|das|eine?|el|la|les?|una?) )?(?P<subject>[\w'’.-]+(?: [\w'’.-]+){0,3}) ?[?？؟]*$"
    r"|^what (?:do|does) (?:an? |the )?(?P<doer>[\w'’.-]+(?: [\w'’.-]+){0,3}) (?:do|mean) ?\?*$"
    r"|^什么是(?P<zh>[^?？]{1,20})[?？]?$"
)
_NUMBER = re.compile(
    r"(?i)\d|[一二三四五六七八九十百千万亿两]|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozens?"
    r"|hundreds?|thousands?|millions?|billions?|half|twice|once|both|zwei|drei|vier|fünf|dos|tres|cuatro|cinco|deux|trois"
    r"|quatre|cinq|два|две|три|четыре|пять|اثن\w+|ثلاث\w*|أربع\w*|خمس\w*)\b"
)
_DATE = re.compile(
    r"(?i)\b(?:1\d|20)\d\d\b|\d\s*(?:年|月|日|st|nd|rd|th|世纪)|\b(?:january|february|march|april|may|june|july|august"
    r"|september|october|november|december|monday|tuesday|wednesday|thursday|friday|saturday|sunday|century|centuries"
    r"|jahrhundert\w*|siglo|siècle|век[ае]?|القرن)\b|\b\d{1,2}[:.]\d\d\b|[٠-٩]{4}|[०-९]{4}"
)
_CAPITAL = "[A-ZÀ-ÖØ-ÞΑ-ΩА-Я]"
_NAME = re.compile(rf"(?<=[\w,;] ){_CAPITAL}\w+|{_CAPITAL}\w+ {_CAPITAL}\w+|·")
_PLACE = re.compile(r"\b(?:in|at|near|from|to|of|outside|along)\s+(?:the\s+)?[A-Z]\w+")
_REASON = re.compile(
    r"(?i)\b(?:because|since|due to|owing to|in order to|so that|therefore|reasons?|as a result|cause[ds]?|weil|denn|da"
    r"|um|porque|debido|parce|car|afin|потому|из-за|поскольку|بسبب|لأن|çünkü)\b|因为|由于|因此|ため|から|เพราะ|때문"
)
_EXPECTED = ((_WHEN, _DATE), (_HOW_MANY, _NUMBER), (_WHO, _NAME), (_WHERE, _PLACE), (_WHY, _REASON))
# `\w` leaves out the vowel signs of Indic, Thai, Hebrew and Arabic writing, which stand inside words.
WORD_CHARACTER = (
    r"[\w\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0970-\u0dff\u0e31-\u0e4e\u0eb1-\u0ece]"
)
_WORD = re.compile(rf"{WORD_CHARACTER}+(?:['’.-]{WORD_CHARACTER}+)*")
# In "the with statement" or `if`, a word is talked about and not used.
_MENTIONED = re.compile(
    r"[\"'“”‘’`「『](\w+)[\"'“”‘’`」』]"
    r"|\b(\w+)[- ](?:statement|keyword|clause|operator|command|option|expression|loop)\b"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question wants.

    content: the question without question words and other words that say nothing about where the answer stands.
    expected: what an answer would contain (a date, a number, a name, ...); None where nothing is certain.
    subject: the thing to define, of "What is X?"; else empty.
    mentioned: words talked about, as in "the with statement"; lower case.
    open: wants an explanation or a list rather than one fact. summary: wants the gist of the text.
    """

    content: str
    expected: re.Pattern[str] | None
    subject: str
    mentioned: frozenset[str]
    open: bool
    summary: bool


def read(question: str) -> Asked:
    question = " ".join(question.split())
    words = _WORD.findall(_EMPTY_PHRASES.sub(" ", question))
    # IT and WHO in capitals are names, unless everything is in capitals.
    shouted = question.isupper()
    mentioned = frozenset((first or second).lower() for first, second in _MENTIONED.findall(question))
    content = " ".join(
        word
        for word in words
        if word.lower() not in _EMPTY or word.lower() in mentioned or (len(word) > 1 and word.isupper() and not shouted)
    )
    definition = _DEFINITION.search(question)
    return Asked(
        content=content,
        expected=next((answer for asking, answer in _EXPECTED if asking.search(question)), None),
        subject=(definition["subject"] or definition["doer"] or definition["zh"]) if definition else "",
        mentioned=mentioned,
        open=_OPEN.search(question) is not None,
        summary=_SUMMARY.search(question) is not None or not content,
    )
