"""What people and programs say around a long text: questions, tasks that need every word, introductions, labels.

Word lists in several languages, over short stretches of text only; where the stretches are is left to `blocks.py`.
Unclear is meant to come out as no question or as a task that needs every word: both leave a request alone.
"""

from __future__ import annotations

import re
from itertools import pairwise

# Where an order stands: at the beginning, after a mark, or after words that lead up to one. For Latin script and others
# that write spaces.
_LEAD = (
    r"(?:^|[.!?:;,\n(-]\s*|\b(?:please|kindly|now|then|and|just|also|you|you to|this to|it to|need to|want to|"
    r"help me|help|(?:job|task|role|goal|work) is to|let's|bitte|kannst du|können sie|könntest du|peux-tu|"
    r"pouvez-vous|por favor|puedes|podrías|per favore|puoi|пожалуйста|можешь|можете|من فضلك|you must|you will|"
    r"you should)\s+)"
)


def _spaced(words: str) -> str:
    return "(?:" + "|".join(word.replace("_", r"\s+") for word in words.split()) + ")"


_ENGLISH_ORDERS = (
    _spaced(
        r"""translate transliterate proof-?read re-?write re-?phrase re-?word re-?format paraphrase (?:copy-?)?edit
        polish improve refine revise correct fix repair debug refactor format convert transform transcribe port
        redact anonymi[sz]e normali[sz]e de-?duplicate sort clean count continue complete finish extend expand
        lengthen shorten condense simplify punctuate capitali[sz]e repeat copy reproduce recite implement write
        add remove replace rename insert migrate optimi[sz]e modify update change adapt generate create build
        extract parse split merge annotate label tag classify categori[sz]e validate render
        turn_(?:this|these|the|it|them|all|that) make_(?:this|it|the|these|them|that)
        put_(?:this|it|the|these|all|everything) go_on keep_going carry_on highlight filter
        (?:list|find|give|name|return|mark)_(?:me_)?(?:every|each) find_all
        return_(?:all|the_(?:text|whole|full|entire))"""
    )
    + r"\b"
)
_EXACT_ORDERS_ELSEWHERE = _spaced(
    r"""übersetze?\b übersetzen korrigieren?\b verbessere?\b verbessern überarbeiten?\b lektorieren?\b
        konvertieren?\b formatieren?\b extrahieren?\b umschreiben umformulieren fortsetzen vervollständigen?
        wandle zähle schreibe?\b ergänzen?\b setze?\b ersetzen?\b tradui(?:s|sez|re)\b corrige[zr]?\b
        réécri(?:s|vez|re)\b reformule[zr]?\b convertis\w*\b convertir continue[zr]?\b complète[zr]?\b compléter
        améliore[zr]?\b extrais\b extraire extrayez relis(?:ez)?\b écri(?:s|vez|re)\b compte[zr]?\b traduce\b
        traducir traduzca\w* traduzir traduza\b corrija\w* corregir corrigir reescrib\w+ reescrev\w+ reformul\w+
        convierte convierta converta\b continúa continúe completa\b completar extrae\b extraer extraiga extraia
        mejora\b mejorar escrib[ea]\b escreva\b traduci\b tradurre correggi\b correggere riscriv\w+ riformula\w*
        converti\b continua\b estrai\b migliora\b scrivi\b vertaal\b vertalen herschrijf\w* herschrijven
        corrigeer verbeter\b przetłumacz\w* popraw\b przepisz przeredaguj переведи(?:те)?\b перевести
        исправь(?:те)?\b исправить перепиши(?:те)?\b переписать переформулируй(?:те)? отредактируй(?:те)?
        продолжи(?:те)?\b дополни(?:те)?\b преобразуй(?:те)? извлеки(?:те)? (?:по|под)считай(?:те)?
        вычитай(?:те)? напиши(?:те)?\b çevir\w*\b düzelt\w*\b ترجم\w* صحح\w* دقق أعد_(?:كتابة|صياغة) حو[ّ]?ل\b
        أكمل استخرج قم_ب(?:ترجمة|تصحيح)"""
)
_EXACT_ORDERS = f"(?:{_ENGLISH_ORDERS}|{_EXACT_ORDERS_ELSEWHERE})"
_EXACT_ANYWHERE = _spaced(
    r"""\btranslation_of\b
        \b(?:into|to)_(?:english|french|german|spanish|italian|dutch|portuguese|chinese|japanese|russian|arabic)\b
        word_(?:for|by)_word verbatim sentence_by_sentence line_by_line
        every_(?:single_)?(?:word|line|sentence|row|record|occurrence)\b each_occurrence
        (?:corrected|fixed|revised|edited|improved|updated|translated|rewritten|full|complete|entire)_(?:text|version|file|code)\b
        without_(?:dropping|losing|omitting|changing|leaving|skipping)\b
        the_next_(?:chapter|scene|paragraph|part|line)
        (?:how_many_(?:times|words|characters|letters|lines|sentences|paragraphs))
        number_of_(?:words|occurrences)
        all_(?:names|dates|numbers|entities|emails|addresses|mentions|occurrences|people|places|figures|amounts)\b
        \bschreib\w*_.{0,80}\bum\b \bformulier\w*_.{0,80}\bum\b \bsetz\w*_.{0,80}\bfort\b
        ins_(?:englische|deutsche|französische|spanische)\b en_(?:anglais|français|allemand|espagnol)\b
        al_(?:inglés|español|francés|alemán)\b на_(?:английский|русский|немецкий|французский)
        إلى_(?:الإنجليزية|العربية|الفرنسية) (?:请|請|把|将|將|帮|幫).{0,20}(?:翻译|翻譯)
        (?:翻译|翻譯|译)(?:成|为|為|以下|下面|上|这|這) 改写 改寫 润色 潤色 校对 校對 续写 續寫 重写 重寫 修改
        纠正 糾正 转换[成为] 轉換 提取(?:所有|全部) 补全 扩写 缩写成 纠错 写一[篇个首段] 翻訳して 翻訳し? 訳して
        書き直 校正 言い換え 続きを 変換して 抽出して 修正して 直して 번역 교정 다시_써 고쳐 바꿔 변환 이어서_써
        추출해"""
)
_EXACT = re.compile(rf"{_LEAD}{_EXACT_ORDERS}|{_EXACT_ANYWHERE}", re.IGNORECASE)

# Not about the text, though it begins like an order on it.
_HARMLESS = re.compile(
    r"\b(?:write|create|generate|make|produce|draft|add|complete)\s+(?:me\s+|up\s+)?(?:an?|the|your)?\s*(?:[\w-]+\s+){0,3}"
    r"(?:summary|overview|abstract|synopsis|outline|tl;?dr|digest|answer|response|reply)"
    r"|\b(?:format|write|return|put|render|complete|copy|repeat|shorten|label|finish|continue)\s+(?:only\s+)?"
    r"(?:your|the|each)\s+(?:final\s+|short\s+)?(?:answers?|responses?|reply|replies|outputs?|results?)\b"
    r"|\bcopy\s+the\s+(?:sentence|passage)s?\b|(?<=[.\n])\s*(?:write|reply|answer)\s+in\s+[^.\n]{1,60}",
    re.IGNORECASE,
)

# A system text says much in passing; only what it makes of the model as a whole counts.
_SYSTEM_TASK = re.compile(
    r"(?:\byou\s+(?:are|act\s+as)|\bact\s+as)\s+(?:an?\s+)?(?:[\w-]+\s+){0,4}(?:translator|translation\s+\w+|proof-?reader|"
    r"(?:copy\s?|code\s+|text\s+)?editor|linter|formatter|converter|transcriber|parser|classifier|annotator|"
    r"autocomplete|grammar\s+\w+)\b|\b(?:your\s+(?:job|task|role)\s+is\s+to)\s+"
    + _EXACT_ORDERS
    + r"|^\s*"
    + _EXACT_ORDERS,
    re.IGNORECASE,
)

_QUESTION_MARK = re.compile(r"[?？؟]")
_QUESTION_WORD = re.compile(
    r"(?:^|[.!:：,，\n]\s*)(?:"
    + _spaced(
        r"""(?:(?:in|at|to|for|on|by|from|of|with|under|about)_)?(?:what|which|whose|whom|who|when|where|why|how)(?:'s)?\b
        (?:is|are|was|were|do|does|did|can|could|should|would|will|has|have|had)_\w
        (?:wer|was|wann|wo|warum|weshalb|wie|wieso|wem|wen|wessen|welche[rsmn]?|wieviele?|womit|woher|wohin)\b
        (?:qui|que|quoi|quand|où|pourquoi|comment|combien|quel(?:le)?s?|lequel|est-ce)\b qu'est
        (?:qué|quién(?:es)?|cuándo|dónde|por_qué|cómo|cuál(?:es)?|cuánt[oa]s?)\b ¿
        (?:chi|che|cosa|quando|dove|perché|come|quale|quali|quant[oiae])\b (?:quem|onde|qual|quais|como)\b
        (?:кто|что|когда|где|куда|откуда|почему|зачем|как|как(?:ой|ая|ое|ие|ова|им)|сколько|чей|кого|кому|кем|чем)\b
        (?:من|ما|ماذا|متى|أين|لماذا|كيف|كم|هل|أي)\b"""
    )
    + ")|谁|誰|什么|什麼|哪[个些里位一年]|多少"
    r"|几[个名年位家项]|为什么|為什麼|为何|怎[么样]|如何|何[がをにでの時年人]|どこ|いつ|なぜ|どう"
    r"|どの|누구|무엇|언제|어디|왜|어떻게|몇",
    re.IGNORECASE,
)
_ANSWER_ORDER = re.compile(
    _LEAD
    + _spaced(
        r"""answer explain describe summari[sz]e compare contrast discuss list name identify tell_me find
        give_(?:me|an?) show outline analy[sz]e state define determine evaluate assess mention elaborate explore
        recap look_up write_(?:me_)?an?_(?:[\w-]+_)?(?:summary|overview|abstract) tl;?dr beantworten?\b
        erklären?\b beschreiben?\b fasse?\b zusammenfass\w+ nennen?\b vergleichen?\b erläutern?\b liste\b
        répond(?:s|ez|re)\b explique[zr]?\b résume[zr]?\b décri(?:s|vez|re)\b compare[zr]?\b respond[ea]\b
        contest[ae]\b explica\b explique\b resum[ea]\b resumir describ[ea]\b compara\b enumera\b rispondi\b
        spiega\b riassumi\b descrivi\b responda\b explique\b resuma\b descreva\b ответь(?:те)?\b
        объясни(?:те)?\b опиши(?:те)?\b сравни(?:те)?\b назови(?:те)?\b перечисли(?:те)? изложи\w* أجب اشرح لخص
        صف اذكر قارن"""
    )
    + "|回答|总结|總結|概括|概述|说明|解释|描述|比较|列出|介绍|要約|まとめ|説明|答え|教えて|요약|설명|대답|답하",
    re.IGNORECASE,
)

_INTRODUCES = re.compile(
    r"\b(?:here(?:'s|’s|\s+is|\s+are)|below|following|follows|i(?:'ll|\s+will|'m\s+going\s+to|\s+have)?\s+paste\w*|"
    r"read\s+(?:this|the|through)|have\s+a\s+look|take\s+a\s+look|consider\s+(?:this|the)|attached|given\s+(?:this|the)|"
    r"hier\s+(?:ist|sind|kommt)|lies|lesen\s+sie|folgend\w+|voici|lis(?:ez)?|ci-dessous|suivant\w*|aquí|lee|lea|"
    r"siguiente|ecco|leggi|seguente|вот|прочитай\w*|ниже|следующ\w+|إليك|اقرأ|التالي\w?|فيما\s+يلي)\b"
    r"|以下|下面|请阅读|如下|次の|다음",
    re.IGNORECASE,
)
_INSTRUCTS = re.compile(
    r"\s*(?:[-*•]\s*)?(?:please\s+|bitte\s+)?(?:"
    + _spaced(
        r"""answer\b reply\b respond\b be\b use\b using\b do_not\b don['’]t\b never\b always\b only\b keep\b quote\b
        cite\b give\b limit\b write\b format\b output\b return\b provide\b include\b avoid\b say\b stay\b
        make_sure\b base\b ignore\b if_(?:the|you|it|there|unsure|not|no)\b
        your_(?:answer|reply|response|output)\b
        you_(?:are|answer|help|act|respond|work|must|should|may|can|will)\b the_answer_(?:should|must)\b
        in_your_answer note_that i_(?:need|want)\b antworten?\b verwende\w* nutze\b benutze\b wenn_ falls_ gib\b
        zitiere sei\b halte\b répond\w* utilise\w* si_ sois\b cite[zr]?\b ne_ donne[zr]?\b responda?e?\b usa\b
        cita\b sé\b ответ\w* используй\w* если_ будь\w*\b أجب استخدم إذا"""
    )
    + r"|请|請|回答|如果|仅|只|答案|#{1,6}\s*(?:instructions?|guidelines?|rules?|notes?)\b)",
    re.IGNORECASE,
)

# Words that point at the text beside them, which a text does not do to itself at its ends.
_NOUN = (
    r"(?:text|document|passage|article|report|contract|agreement|transcript|context|paper|story|material|excerpt|source|"
    r"meeting|conversation|file|information|content)s?"
)
_POINTS = re.compile(
    rf"""\b(?:
        (?:above|below|following|provided|given|attached|pasted|preceding)\s+(?:\w+\s+)?{_NOUN}\b
        |{_NOUN}\s+(?:(?:is|are)\s+(?:below|above)|that\s+follows|given|provided|above|below|attached|here
            |i\s+(?:pasted|sent|gave|provided))\b
        |(?:from|in|on|using|to|use|per|of|with|given)\s+(?:only\s+)?(?:the|this|these)\s+
            (?:text|document|passage|article|report|transcript|context|excerpt|material)s?\b
        |here(?:['’]s|\s+is|\s+are)\s+(?:the|my|an?|some)\s+\w+
        |(?:the|given|stated|all|based\s+on|according\s+to|from)\s+(?:the\s+)?above\b|the\s+following\b
        |(?:obig|folgend|vorliegend|nachfolgend|untenstehend)\w+\s+\w+|text\s+(?:oben|unten)
        |(?:texte|document|article|passage)\s+(?:suivant|ci-dessus|ci-dessous|précédent)|ce\s+qui\s+suit
        |(?:texto|documento|artículo|siguiente|anterior)\s+(?:anterior|siguiente|pregunta|texto)
        |(?:следующ|приведенн|приведённ)\w+\s+\w+|текст\w*\s+(?:выше|ниже)
        |(?:النص|الوثيقة|المقال)\s+(?:التالي|أعلاه|السابق)\w*
    )|(?:以上|以下|上述|上面|下面)的?(?:文章|文本|文档|内容|材料|段落)
    |根据(?:以上|以下|上述|上面|下面|文章|文本|文档|材料)|次の文章|以下の|上記の|다음\s|위의\s""",
    re.IGNORECASE | re.VERBOSE,
)
# What a prompt says over and over, and other texts seldom.
_TO_A_MODEL = re.compile(
    r"\b(?:never|always|do not|don['’]t|avoid|ensure|respond|reply|responses?|output|tools?|the users?|the assistant|"
    r"your (?:answer|response|reply|output|task|role|job)|you (?:are|must|should|will|can|may))\b",
    re.IGNORECASE,
)
_MOST_TO_A_MODEL = 0.025
_SAMPLE = 3000
_SPEAKER = re.compile(r"\s*[A-Z][^\n:.?!,]{0,30}:\s+\S")
_CLAUSE = re.compile(r"[^.?!,:，：]{3,120}[,:，：]\s*")
_SENTENCE = re.compile(r"(?:(?<=[.!?。！？؟:])|(?<=[.!?][\"'”»)]))\s+")

_OF_QUESTION = (
    r"(?:(?:my|user|the|here\s+is\s+the|your)\s+)?(?:question|query|instruction|task|request|q|frage|pregunta|domanda|"
    r"pergunta|вопрос|سؤال|السؤال|soru|vraag|pytanie)|问题|問題|提问|请回答|質問|질문"
)
_OF_ANSWER = (
    r"(?:answer|a|response|output|antwort|réponse|respuesta|risposta|resposta|ответ|الإجابة|الجواب)"
    r"|答案|回答|答え|答|답변|답"
)
_OF_TEXT = (
    r"(?:(?:the|source|input|full|given|reference)\s+)?(?:context|input|documents?|texte?|article|passage|report|"
    r"transcript|source|content|contract|paper|story|material|excerpt|background|information|data|kontext|dokument|"
    r"artikel|bericht|contexte|rapport|contexto|texto|documento|artículo|contesto|testo|articolo|текст|контекст|документ|"
    r"статья|النص|السياق|الوثيقة|المقال|metin|tekst)|文本|上下文|文章|文档|材料|正文|内容|資料|文脈|本文|テキスト|문서|본문|문맥"
)
_BOLD = r"[#*_\s>]{0,8}"
QUESTION_LABEL = re.compile(
    rf"{_BOLD}(?:{_OF_QUESTION})[*_]*\s?[:：][*_]*\s*|#{{1,6}}\s*(?:{_OF_QUESTION})[ \t]*(?:\n\s*|$)", re.IGNORECASE
)
ANSWER_LABEL = re.compile(rf"{_BOLD}(?:\w+ )?(?:{_OF_ANSWER})[*_]*\s?[:：][*_]*\s*$", re.IGNORECASE)
TEXT_LABEL = re.compile(rf"{_BOLD}(?:{_OF_TEXT})[*_]*\s?[:：][*_]*\s*|#{{1,6}}\s*(?:{_OF_TEXT})\s*\n\s*", re.IGNORECASE)
_SHOT = re.compile(
    rf"^(?:(input|q|question|example|user|sentence|review|text|problem|x|{_OF_QUESTION})"
    rf"|(output|a|answer|label|response|assistant|sentiment|summary|translation|solution|y|{_OF_ANSWER}))"
    r"\s?\d{0,3}\s?[:：]",
    re.IGNORECASE | re.MULTILINE,
)

_QUESTION_LINE = re.compile(rf"^(?:{QUESTION_LABEL.pattern})", re.IGNORECASE | re.MULTILINE)
_ANSWER_LINE = re.compile(rf"\n(?:{ANSWER_LABEL.pattern})", re.IGNORECASE)
_LEANS = re.compile(
    r"\s*(?:and|but|so|then|ok(?:ay)?|also|what\s+about|how\s+about|why(?:\s+(?:not|is\s+that|so))?|how\s+so|really|"
    r"are\s+you\s+sure|go\s+on|continue|more|tell\s+me\s+more|explain\s+(?:that|this|it|more)|elaborate|again|thanks?|"
    r"thank\s+you|yes|no|what\s+do\s+you\s+mean|what\s+else|anything\s+else|can\s+you\s+(?:elaborate|clarify)|"
    r"und|aber|warum|wieso|bist\s+du\s+sicher|weiter|et|mais|pourquoi|y|pero|por\s+qué|а|и|но|почему|ещё|продолжай|"
    r"لماذا|和|那|为什么|继续|还有)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{3,}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_MOST_LEANING_WORDS = 5
_LONGEST = 1500  # characters of one thing that is said about a text
_LONGEST_INTRODUCTION = 400


def needs_every_word(said: str) -> bool:
    """Whether something said to the model is a task that a shortened text would spoil."""
    return _EXACT.search(_HARMLESS.sub(" ", said)) is not None


def system_needs_every_word(said: str) -> bool:
    """The same of a system text."""
    return _SYSTEM_TASK.search(_HARMLESS.sub(" ", said[:_LONGEST])) is not None


def core(said: str) -> tuple[int, int]:
    """The part that asks, without labels, sentences and clauses that only point at the text or say how to answer."""
    labels = [label.end() for label in _QUESTION_LINE.finditer(said)]
    answer = _ANSWER_LINE.search(said)
    said = said[: answer.start()] if answer else said
    if labels and said[labels[-1] :].strip():
        start = labels[-1]
        return start, start + len(said[start:].rstrip())
    bounds = [0, *(gap.end() for gap in _SENTENCE.finditer(said)), len(said)]
    sentences = list(pairwise(bounds))
    while len(sentences) > 1 and _is_aside(said[slice(*sentences[0])]) and asks(said[sentences[1][0] :]):
        del sentences[0]
    while (
        len(sentences) > 1 and _is_aside(said[slice(*sentences[-1])]) and asks(said[sentences[0][0] : sentences[-1][0]])
    ):
        del sentences[-1]
    start, end = sentences[0][0], sentences[-1][1]
    clause = _CLAUSE.match(said, start, end)
    if clause and _POINTS.search(clause.group()) and asks(said[clause.end() : end]):
        start = clause.end()
    return start, start + len(said[start:end].rstrip())


def _is_aside(sentence: str) -> bool:
    return not has_question_mark(sentence) and (instructs(sentence) or introduces(sentence))


def asks(said: str) -> bool:
    """Whether something asks for an answer."""
    return any(p.search(said) is not None for p in (_QUESTION_MARK, _QUESTION_WORD, _ANSWER_ORDER))


def has_question_mark(said: str) -> bool:
    return _QUESTION_MARK.search(said) is not None or QUESTION_LABEL.match(said) is not None


def leans(question: str) -> bool:
    """Whether a question means little without what was said before it."""
    return len(_WORD.findall(question)) < 2 or (
        _LEANS.match(question) is not None and len(_WORD.findall(question)) <= _MOST_LEANING_WORDS
    )


def weight(paragraph: str) -> int:
    """How sure it is that a paragraph beside a text asks about it: 2 it says so, 1 it asks something, 0 neither."""
    if len(paragraph) > _LONGEST or not paragraph.strip():
        return 0
    if QUESTION_LABEL.match(paragraph):
        return 2
    speaker = _SPEAKER.match(paragraph)
    if speaker and not _POINTS.search(speaker.group()):
        return 0
    stated = paragraph.rstrip().endswith((".", "。", ";", ","))  # "When he came home, it was late."
    begins = (_QUESTION_WORD.match(paragraph) and not stated) or _ANSWER_ORDER.match(paragraph)
    ends = paragraph.rstrip(" \t\n\"')”»*_").endswith(("?", "？", "؟"))
    if points(paragraph) and (begins or ends or _asks_at_an_end(paragraph) or needs_every_word(paragraph)):
        return 2
    return int(ends or (len(paragraph) <= _LONGEST_INTRODUCTION and bool(begins or needs_every_word(paragraph))))


def _asks_at_an_end(paragraph: str) -> bool:
    """Whether the first or the last sentence asks."""
    sentences = [sentence for sentence in _SENTENCE.split(paragraph.strip()) if sentence.strip()]
    return asks(sentences[0]) or asks(sentences[-1])


def introduces(paragraph: str) -> bool:
    """Whether a paragraph says that a text comes next."""
    if len(paragraph) > _LONGEST_INTRODUCTION:
        return False
    announced = paragraph.rstrip().endswith((":", "：", ".", "。")) and _INTRODUCES.search(paragraph) is not None
    return announced and (paragraph.rstrip().endswith((":", "：")) or _POINTS.search(paragraph) is not None)


def instructs(paragraph: str) -> bool:
    """Whether a paragraph says how to answer."""
    return len(paragraph) <= _LONGEST_INTRODUCTION and (
        _INSTRUCTS.match(paragraph) is not None or ANSWER_LABEL.match(paragraph) is not None
    )


def shows_examples(text: str) -> bool:
    """Whether a text consists of inputs with their outputs, for the model to go on in the same way."""
    inputs = outputs = 0
    for found in _SHOT.finditer(text):
        inputs += found.group(1) is not None
        outputs += found.group(2) is not None
        if inputs >= 2 and outputs >= 2:
            return True
    return False


def points(paragraph: str) -> bool:
    """Whether a paragraph speaks of a text beside it."""
    return _POINTS.search(paragraph) is not None


def directs_the_model(text: str) -> bool:
    """Whether a long text is itself instructions for a model, by the share of words that only those are full of."""
    sample = text[:_SAMPLE] + text[len(text) // 2 : len(text) // 2 + _SAMPLE]
    return len(_TO_A_MODEL.findall(sample)) > _MOST_TO_A_MODEL * sample.count(" ")
