"""Text in any script: nothing is lost on the way to tokens. The sentences are made here, by a rule a language."""

import itertools
import shutil
import unicodedata

from conftest import ROOT
import prepare
from test_prepare import texts_of

WORDS = {  # subjects, objects, verbs; how they are put together
    "georgian": ("ბიჭი გოგო ძაღლი მეფე", "სახლს ხეს წიგნს მთვარეს მდინარეს", "ხედავს, ხატავს", "{0} {1} {2}."),
    "hindi": ("लड़का राजा कुत्ता बच्चा", "घर पेड़ चाँद फूल तारा", "देखता है, ढूँढता है", "{0} {1} {2}।"),
    "arabic": ("الولد الملك الكلب الطفل", "البيت الشجرة الكتاب القمر النهر", "يرى, يرسم", "{0} {2} {1}."),
    "chinese": ("男孩 国王 小狗 孩子", "房子 树 书 月亮 河", "看见了, 画了", "{0}{2}{1}。"),
    "persian": ("پسر پادشاه سگ کودک", "خانه درخت کتاب ماه رود", "را می\u200cبیند, را می\u200cکشد", "{0} {1} {2}."),
}


def sentences(language):
    subjects, objects, verbs, frame = WORDS[language]
    for number, *words in itertools.product(range(1, 8), subjects.split(), objects.split(), verbs.split(", ")):
        yield unicodedata.normalize("NFC", f"{number} {frame.format(*words)}")


def test_every_script_comes_back_from_its_tokens(tmp_path, monkeypatch):
    folder = tmp_path / "my lab"
    (folder / "my texts").mkdir(parents=True)
    (folder / "my pairs").mkdir()
    (folder / "my pairs" / "x.jsonl").write_text("{}\n")
    monkeypatch.chdir(folder)
    shutil.copy(ROOT / "config.yaml", folder)
    for language in WORDS:
        text = "".join(line + "\n" for line in sentences(language))
        (folder / "my texts" / f"{language}.txt").write_text(text, encoding="utf-8")
    overrides = ["data.name=t", "data.source=my texts", "data.validation_kb=2", "eval.data=my pairs"]
    clean = "data.clean=[unicode_joiners, speaker_tags, markup, unwrap, spaces]"
    prepare.main([*overrides, "tokenizer.vocab_size=500", clean])
    found = [*texts_of("train"), *texts_of("val")]
    assert sorted(found) == sorted(itertools.chain(*map(sentences, WORDS)))
    assert any("\u200c" in line for line in found)  # which Persian is spelled with
