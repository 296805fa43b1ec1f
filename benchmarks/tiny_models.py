"""Token classification models that need no download: random weights, tokenizers trained on invented sentences.

They say nothing sensible about a text, but they have the two tokenizers and the two architectures of the published
LLMLingua-2 checkpoints, which is what comparing and timing two implementations needs.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

Kind = Literal["bert", "xlmr"]
KINDS: tuple[Kind, ...] = ("bert", "xlmr")
# The reference tells the two architectures apart by these names in the path.
FOLDERS: dict[Kind, str] = {"bert": "bert-base-multilingual-cased", "xlmr": "xlm-roberta-large"}

# Language → words to put together; no text of anyone's.
_WORDS: dict[str, str] = {
    "en": "the council did not approve a budget of $3,200 for each new harbour unless at least two-thirds of members "
    "vote twice and Mrs. Alder's committee can't refuse it before 12 March 2031 however small it may be",
    "de": "der Rat hat den Haushalt von 3.200 € für jeden neuen Hafen nicht genehmigt wenn mindestens zwei Drittel der "
    "Mitglieder am 12. März zustimmen und Übergrößen außerhalb der Straße fehlen",
    "fr": "le conseil n'a pas approuvé le budget de 3 200 € pour chaque nouveau port sauf si deux tiers des membres "
    "votent l'été où l'œuvre de Zoé s'achève à Genève",
    "es": "el consejo no aprobó el presupuesto de 3.200 € para cada puerto nuevo salvo que dos tercios de los miembros "
    "voten ¿cuándo? mañana en la reunión del señor Ibáñez",
    "ru": "совет не утвердил бюджет в 3200 рублей для каждого нового порта если две трети членов не проголосуют до "
    "двенадцатого марта и объём останется прежним",
    "ar": "لم يوافق المجلس على الميزانية لكل ميناء جديد إلا إذا صوت ثلثا الأعضاء قبل شهر مارس",
    "hi": "परिषद ने हर नए बंदरगाह के लिए बजट को मंजूरी नहीं दी जब तक दो तिहाई सदस्य मतदान नहीं करते",
    "zh": "委员会 没有 批准 每个 新 港口 的 预算 三千 二百 元 除非 至少 三分之二 成员 在 三月 十二 日 之前 投票 两次",
    "ja": "評議会 は 新しい 港 ごと の 予算 を 承認 しません でした ただし 少なくとも 三分の二 が "
    "三月 十二日 まで に 投票 する 場合 を 除き ます",
}
LANGUAGES = tuple(_WORDS)
_UNSPACED = ("zh", "ja")


def invented_text(language: str, n_sentences: int, seed: int) -> str:
    """Sentences of random words; the same for the same seed."""
    rng = random.Random(f"{language} {seed}")
    words, glue, stop = _WORDS[language].split(), " ", "."
    if language in _UNSPACED:
        glue, stop = "", "。"
    sentences = []
    for _ in range(n_sentences):
        chosen = rng.choices(words, k=rng.randint(3, 18))
        mark = rng.choice([stop, stop, stop, "?", "!", ";", ","])
        sentences.append(glue.join(chosen) + mark + rng.choice([glue, glue, glue, "\n", "\n\n"]))
    return "".join(sentences)


def tokenizer(kind: Kind, vocabulary_size: int = 800, more_texts: tuple[str, ...] = ()) -> Any:
    """A `tokenizers.Tokenizer` with the pipeline of the published checkpoint of that kind."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    texts = [invented_text(language, 120, 0) for language in LANGUAGES] + list(more_texts)
    if kind == "bert":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106  # not a password
        made.normalizer = normalizers.BertNormalizer(lowercase=False)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece(prefix="##", cleanup=True)
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made.train_from_iterator(
            texts, trainers.WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=special, show_progress=False)
        )
    else:
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
        )
        made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        unknown = {"unk_token": "<unk>"}
        trainer = trainers.UnigramTrainer(
            vocab_size=vocabulary_size, special_tokens=special, show_progress=False, **unknown
        )
        made.train_from_iterator(texts, trainer)
    return made


SPECIAL: dict[Kind, dict[str, str]] = {
    "bert": {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "xlmr": {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>",
             "eos_token": "</s>"},
}  # fmt: skip


def save(
    folder: Path,
    kind: Kind,
    *,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 2,
    vocabulary_size: int = 800,
    more_texts: tuple[str, ...] = (),
) -> Path:
    """A model with random weights in the Hugging Face layout, in a folder below this one; returns that folder."""
    import torch
    from transformers import (
        BertConfig,
        BertForTokenClassification,
        PreTrainedTokenizerFast,
        XLMRobertaConfig,
        XLMRobertaForTokenClassification,
    )

    target = folder / FOLDERS[kind]
    own = tokenizer(kind, vocabulary_size, more_texts)
    names: dict[str, Any] = {**SPECIAL[kind], "mask_token": "[MASK]" if kind == "bert" else "<mask>"}
    fast: Any = PreTrainedTokenizerFast  # untyped there
    fast(tokenizer_object=own, **names).save_pretrained(target)
    size: dict[str, Any] = {
        "vocab_size": own.get_vocab_size(),
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden_size,
        "num_labels": 2,
        # Far wider than what training starts from: with the usual 0.02 all tokens would be worth the same.
        "initializer_range": 0.3 if hidden_size < 256 else 0.05,
    }
    torch.manual_seed(0)
    if kind == "bert":
        model: Any = BertForTokenClassification(BertConfig(**size))
    else:
        xlmr = XLMRobertaConfig(
            **size, max_position_embeddings=514, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1
        )
        model = XLMRobertaForTokenClassification(xlmr)
    model.save_pretrained(target)
    return target
