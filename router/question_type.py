"""What kind of question is this? Probabilities over the tasks, from the words of the question alone.

A few rules and a linear model over cues (one idea in several languages), shape and n-grams. It reads neither documents
nor embeddings and needs no package. `benchmarks/question_types.py` trains and measures it; the weights file holds its
data, command and held-out metrics. What follows from a question's type is left to the policies.

The vocabulary is explicit, not hashed: at this size names cost little, never collide, and show a reader why.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

from .core import TASKS, Task

# A cue is one idea in several languages, so that what English data teach also holds where there were no data.
# Alternatives are regular expressions separated by white space, `_` standing for a space; each matches at the start of
# a word, so `summar` covers summary and summarise, except in scripts that write no spaces.
_CUES: dict[str, str] = {
    "compare": r"""compar contrast vergleich confront karşılaştır сравн сопостав قارن مقارن तुलना σύγκρι 比较 比較
        对比 對比 相比 比べ 비교""",
    "differ": r"""differ distin[cg] unterschei unterschied différ diferen diverg разли разниц отлич الفرق farklı
        verschil 不同 差异 差異 区别 區別 違い 차이""",
    "both": r"""both\b same\b similar share in_common beide gemeinsam ähnlich les_deux ambos ambas entrambi оба\b
        обе\b aynı 都是 共同 相同 相似 両方 共通 둘_다 공통""",
    "versus": r"""versus vs\b rather_than as_opposed relative_to gegenüber im_gegensatz 相较""",
    "comparative": r"""
        (?:higher|lower|larger|smaller|bigger|older|younger|earlier|later|longer|shorter|faster|slower)\b
        (?:better|worse|greater|fewer|stronger|cheaper|taller|more|less)\b
        (?:höher|niedriger|größer|kleiner|älter|jünger|früher|später|länger|kürzer|schneller|besser|mehr)\b
        plus_(?:grand|petit|élevé|âgé|tôt|tard|long|rapide|récent) (?:más|mais|più)_\w+ mayor\b menor\b больше
        меньше выше\b ниже\b раньше позже старше daha_\w+ 更[高低大小早晚长短多少好快] 谁更 より 더_""",
    "alternative": r"""\w+,?_(?:or|oder|ou|или|veya|أو)_ 还是 それとも 아니면""",
    "change": r"""chang evol increas decreas shift\b trend grow veränder entwickelt gestiegen gesunken augment
        diminu cambi aument disminu измени вырос снизи değiş 变化 變化 增长 增加 减少 推移 변화 증가""",
    "summary": r"""summar résum resum riassum riassun zusammenfass zusammengefasst fass\w*_.{0,80}zusammen
        inhaltsangabe краткое кратко_ резюм обобщ изложи لخص تلخيص ملخص özet सारांश samenvat tl;?dr overview
        überblick aperçu synops recap\b gist\b in_a_nutshell takeaway 总结 總結 概括 概述 摘要 归纳 要約 まとめ
        概要 요약 간추""",
    "about": r"""(?:main|key|central|principal|major)_(?:point|idea|topic|theme|message|argument|finding) plot\b
        what_(?:is|was|are|were|does)_.{1,30}_about\b hauptpunkt kernaussage hauptthem worum_geht wovon_handelt
        (?:points|idées|thèmes)_(?:clés|principa) de_quoi_(?:parle|traite)
        (?:puntos|ideas|temas)_(?:clave|principal) de_qué_(?:trata|habla) di_cosa_(?:parla|tratta)
        (?:punti|idee|temi)_(?:chiave|principal) о_ч[её]м\b (?:основн|главн)\w+_(?:мысл|иде|тем|положени|сюжет)
        ana_(?:fikir|konu) الفكرة_الرئيسية النقاط_الرئيسية 主要内容 大意 要点 要點 主旨 讲了什么 讲的是什么
        何について あらすじ 줄거리 주요_내용""",
    "describe": r"""describ outline\b characteri[sz]e elaborate beschreib erläuter décri descri опиши اشرح açıkla
        描述 介绍 介紹 说明 説明 설명""",
    "count": r"""how_(?:many_times|often|frequently) count\b counts\b number_of_times total_(?:number|count)
        in_total\b altogether wie_(?:oft|häufig) zähle?_ insgesamt combien_de_fois compte[rz]?_ au_total
        cuántas_veces cuenta_ en_total quante_volte quantas_vezes сколько_раз подсчита посчита всего\b كم_مرة
        kaç_kez kaç_kere toplam 多少次 几次 幾次 总共 一共 总数 何回 合計 몇_번""",
    "how many": r"""how_(?:many|much) wie_?viele?n?\b combien cuánt quant[oiae]s?\b сколько كم\b kaç\b कितन πόσ
        hoeveel bao_nhiêu 多少 几[个名年位家项] いくつ いくら 何[人個件年] 얼마 몇 เท่าไ กี่""",
    "all": r"""all\b every\b each\b lists?\b enumerat name_(?:all|every) throughout across entire whole overall
        aller?\b alles\b sämtliche jede[rsmn]?\b liste nenne zähle_.{0,60}_auf\b gesamte tous\b toutes\b chaque
        énumér todos\b todas\b cada\b enumer lista\b tutt[ie]\b elenc все\b всех\b кажд перечисл список جميع اذكر
        tüm\b bütün listele सभी 所有 全部 列出 列举 每[个一家] 哪些 すべて 全て 列挙 一覧 모든 나열 목록""",
    "respectively": r"""respective jeweils respectiv rispettiv соответственно على_التوالي sırasıyla 分别 分別 各自
        それぞれ 각각""",
    "order": r"""reorder timeline chronolog order_of in_(?:which|what)_order reihenfolge упорядоч 排序 顺序 時系列
        순서""",
    "extreme": r"""(?:most|least|highest|lowest|largest|smallest|longest|oldest|newest|average|sum)\b am_\w+sten\b
        durchschnitt moyenne promedio средн самы 最[高低大小早晚长短多少] 平均 总和 最も 가장""",
    "why": r"""why\b warum weshalb wieso pourquoi por_qué perché почему зачем لماذا neden niçin क्यों γιατί waarom
        tại_sao 为什么 為什麼 为何 なぜ どうして 왜 ทำไม""",
    "how": r"""how_(?:do|does|did|is|are|was|were|can|could|would|might|may|will|has|have)\b in_what_way inwiefern
        wie_(?!viel|oft|hoch|lange|heiß|alt|groß) comment\b cómo\b como\b come\b как\b كيف nasıl कैसे πώς hoe\b
        如何 怎样 怎么 どのよう どうやって 어떻게 อย่างไร""",
    "cause": r"""reason because caus impact effect affect influenc contribut lead_to led_to result consequen
        impl(?:y|ies) infer\b conclude deduc suggest likely motiv signific auswirk beeinfluss einfluss grund\b
        gründe ursache folger raison conséquen influenc déduire razón razones consecuen influ deducir conseguen
        причин влия последств вывод سبب أسباب تأثير sonuç etki sebep 原因 影响 影響 导致 導致 理由 作用 意义 推断
        結果 이유 영향 원인 결과""",
    "condition": r"""if\b would\b could\b assuming suppose given_that based_on considering wenn\b falls\b würde
        angenommen supposons если\b бы\b eğer 如果 假设 もし 만약""",
    "who": r"""who\b whom\b whose\b wer\b wem\b wessen qui\b quién chi\b quem\b кто\b кого\b кому\b кем\b من\b
        kim\b kimin कौन किस ποιος 谁 誰 누가 누구 ใคร""",
    "when": r"""when\b (?:what|which)_(?:year|date|day|month|time)\b wann\b quand\b cuándo quando\b когда متى
        ne_zaman कब πότε in_welchem_jahr en_quelle_année en_qué_(?:año|fecha) in_che_anno в_каком_году wanneer
        khi_nào 何时 什么时候 哪一?[年天] 日期 いつ 언제 เมื่อ""",
    "where": r"""where\b wo\b woher wohin où\b dónde dove\b onde\b где\b куда откуда أين nerede nereye कहाँ πού
        waar\b ở_đâu 哪里 哪裡 在哪 どこ 어디 ที่ไหน""",
    "which": r"""which\b welche[rsmn]?\b quell?e?s?\b cuál quali\b qual\b как(?:ой|ая|ое|ие|ую|ого|ому)\b أي\b
        hangi welk 哪[个家种位] どの どちら 어느 어떤""",
    "what": r"""what\b was\b qu'est que\b quoi\b qué\b cosa\b что\b ما\b ماذا nedir क्या τι\b wat\b 什么 什麼
        何[がをの] 무엇 뭐 อะไร""",
    "name": r"""names?\b named\b called\b title\b heißt genannt s'appelle nom\b llama nombre chiama зовут назыв اسم
        adı\b 名字 名称 叫什么 名前 이름 ชื่อ""",
    "trivia": r"""favou?rite colou?r brand middle_name nickname pet\b hobby lieblings préféré favorit любим المفضل
        最喜欢 颜色 品牌 爱好 好きな 좋아하는""",
    "future": r"""project(?:ed|ions?)\b forecast expected upcoming next_(?:year|fiscal|quarter|decade) future
        plans?\b prognose geplant prévu previst прогноз 预计 未来 计划 予測 予定 예상""",
    "code": r"""functions?\b methods?\b class(?:es)?\b subclass module\b variables?\b parameters?\b arguments?\b
        decorator constructor interface inherit exceptions?\b raise[sd]?\b returns?\b callback endpoint handler
        api\b cli\b funktion methode\b klasse rückgabe gibt_.{0,60}_zurück fonction renvoie función devuelve
        clase\b método funzione restituisce função функци метод класс возвраща دالة fonksiyon döndür 函数 函數 方法
        返回 接口 参数 变量 関数 メソッド クラス 戻り値 함수 메서드 클래스 반환""",
    "programming": r"""(?:function|method)_\w+_(?:return|raise|call|take|do)s?\b (?:函数|関数|方法)_?[a-z]\w*
        code\b codebase source_file repositor traceback stack_?trace refactor unit_?tests? compile debug bugs?\b
        segfault runtime_error syntax implement(?:s|ed|ation)?\b deprecated (?:java|type)script python c\+\+ sql\b
        git\b quellcode quelltext fehlermeldung код[еа]?\b исходн código codice الكود kodu 代码 代碼 源码 报错 异常
        编译 コード 実装 エラー 코드 오류 구현""",
}

_SHAPES: dict[str, str] = {
    "code syntax": r"\w\(\w*\)|`[^`]+`|\b[a-z]+_[a-z_]+\b|\b[a-z]{2,}[A-Z]\w+"
    r"|\.(?:py|js|ts|java|go|rs|cpp|rb|sh)\b|[{};]\s*\n",
    "one year": r"\b(?:19|20)\d\d\b",
    "two years": r"\b(?:19|20)\d\d\b.*\b(?:19|20)\d\d\b",
    "two names": r"[A-Z]\w+(?:'s)? (?:and|or|und|oder|et|ou|y|e|и) (?:[a-z]{1,3} )?[A-Z]\w+"
    r"|[^\s，。？]{2}和[^\s，。？]{2}",
    "two questions": r"[?？].*[?？]|, and (?:what|how|why|who|when|where|which)\b",
    "whole text": r"(?i)\b(?:this|the)(?: whole| entire| full)?"
    r" (?:document|text|article|report|book|story|meeting|file)\b",
    "not a question": r"[^?？؟]\s*$",
    "yes or no": r"^(?:Is|Are|Was|Were|Do|Does|Did|Has|Have|Can|Will|Ist|Sind|War|Hat|Est-ce)\b|[吗嗎]|是否|나요",
}

_MAX_CHARACTERS = 600  # more than this is pasted text: the request itself stands at its beginning or its end
_UNSPACED = "぀-ヿ㐀-鿿가-힯฀-๿"
_TOKEN = re.compile(rf"[{_UNSPACED}]+|[^\W\d_{_UNSPACED}]+|\d+")


# What a person would write down first: the first line with a cue that is present names the task, else it is a lookup.
_RULES: tuple[tuple[Task, frozenset[str]], ...] = (
    ("code", frozenset({"shape: code syntax", "cue: programming"})),
    ("summary", frozenset({"cue: summary", "cue: about"})),
    ("comparison", frozenset({"cue: compare", "cue: differ", "cue: versus", "cue: alternative"})),
    ("aggregation", frozenset({"cue: count", "cue: all", "cue: respectively", "cue: order"})),
    ("unanswerable", frozenset({"cue: trivia"})),
    ("reasoning", frozenset({"cue: why", "cue: how", "cue: cause", "cue: condition"})),
)


def question_type(question: str) -> dict[Task, float]:
    """Probability of each task, summing to 1.

    A mixture of the linear model, which knows the style of its data sets best, and of what types questions of one rule
    turned out to be, which holds better for the style of strangers.
    """
    model = _model()
    found = features(question)
    scores = list(model["bias"])
    for name, value in found.items():
        for task, weight in enumerate(model["weights"].get(name, ())):
            scores[task] += value * weight
    top = max(scores)
    odds = [math.exp(score - top) for score in scores]
    by_rule = model["after_rule"][rule(found)]
    share = model["rule_share"]
    mixed = [(1 - share) * odd / sum(odds) + share * p for odd, p in zip(odds, by_rule, strict=True)]
    return {task: p / sum(mixed) for task, p in zip(TASKS, mixed, strict=True)}


def rule(found: Collection[str]) -> Task:
    """The task that the first matching rule names, given the names of the features found."""
    return next((task for task, cues in _RULES if any(cue in found for cue in cues)), "lookup")


@cache
def _model() -> dict[str, Any]:
    """bias: one per task; weights: one per task, by feature; after_rule: one probability per task, by rule."""
    policies = f"{__package__.rpartition('.')[0]}.policies"
    text = resources.files(policies).joinpath("weights", "question_type.json").read_text(encoding="utf-8")
    model: dict[str, Any] = json.loads(text)
    return model


def features(question: str) -> dict[str, float]:
    """Sparse features by name: 1 for each cue and shape that is present, 1/sqrt(n) for each of the n n-grams.

    N-grams are words and pairs of words; in scripts without spaces, characters and pairs of characters. Their weight
    falls with their number so that a long question is not surer of itself than a short one.
    """
    if len(question) > _MAX_CHARACTERS:
        question = question[: _MAX_CHARACTERS // 2] + " " + question[-_MAX_CHARACTERS // 2 :]
    text, lowered = question.strip(), question.strip().lower()
    found = {f"cue: {name}": 1.0 for name, pattern in _patterns()[0] if pattern.search(lowered)}
    found |= {f"shape: {name}": 1.0 for name, pattern in _patterns()[1] if pattern.search(text)}
    units = ["^"]  # the start of the question is worth a token: "what" opens a lookup, "and what" does not
    for token in _TOKEN.findall(lowered):
        if re.match(f"[{_UNSPACED}]", token):
            units.extend(token)
        else:
            units.append("0" if token.isdigit() else token)
    found[f"length: {min(len(units).bit_length(), 7)}"] = 1.0
    # In order of appearance, not a set: sums over it are the same in every process.
    grams = dict.fromkeys((*units[1:], *(f"{a} {b}" for a, b in pairwise(units))))
    return found | dict.fromkeys(grams, 1 / math.sqrt(max(len(grams), 1)))


@cache
def _patterns() -> tuple[list[tuple[str, re.Pattern[str]]], list[tuple[str, re.Pattern[str]]]]:
    cues = []
    for name, alternatives in _CUES.items():
        terms = [term.replace("_", " ") for term in alternatives.split()]
        unspaced = [term for term in terms if re.match(f"[{_UNSPACED}]", term)]
        spaced = [term for term in terms if term not in unspaced]
        parts = [rf"(?<![^\W_])(?:{'|'.join(spaced)})", *unspaced]
        cues.append((name, re.compile("|".join(parts))))
    return cues, [(name, re.compile(pattern, re.DOTALL)) for name, pattern in _SHAPES.items()]
