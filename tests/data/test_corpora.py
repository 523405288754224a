import gzip

import pyarrow
import pyarrow.parquet
import pytest

from scratchlm.data import CORPORA, LOADERS
from scratchlm.data.corpora import FIRST_VALID
from scratchlm.data.remote import RemoteCorpus, RemoteFile, join_articles

REMOTE = ["openwebtext-sample", "tiny-shakespeare", "tinystories", "wikitext-103", "wikitext-2"]


def texts(corpus, split):
    documents, text = [], ""
    for chunk in corpus.chunks(split):
        text += chunk.text
        if chunk.ends_document:
            documents.append(text)
            text = ""
    assert text == "", "the last document must end"
    return documents


@pytest.fixture
def files(tmp_path):
    """Build a corpus of files from their contents by name."""

    def make(contents, *, paths=None, **settings):
        for name, content in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        paths = paths or [tmp_path]
        return CORPORA.build("files", paths=[str(path) for path in paths], **settings)

    return make


def test_every_family_name_is_found():
    assert CORPORA.names() == ["files", *REMOTE[:1], "stories", *REMOTE[1:]]
    assert LOADERS.names() == ["documents", "epochs", "packed", "windows"]


def test_stories_are_the_same_each_time_and_differ_between_splits():
    corpus = CORPORA.build("stories", num_train=30, num_valid=10, seed=1)
    train, valid = texts(corpus, "train"), texts(corpus, "valid")
    assert (len(train), len(valid)) == (30, 10)
    assert texts(corpus, "train") == train
    assert not set(train) & set(valid)
    grown = CORPORA.build("stories", num_train=40, num_valid=10, seed=1)
    assert texts(grown, "train")[:30] == train
    assert texts(grown, "valid") == valid
    assert texts(CORPORA.build("stories", num_train=30, num_valid=10, seed=2), "train") != train


def test_stories_know_their_probability_and_other_corpora_do_not(files):
    corpus = CORPORA.build("stories", num_train=3, num_valid=3)
    assert all(corpus.log_probability(text) < 0 for text in texts(corpus, "valid"))
    assert files({"a.txt": "text"}).log_probability("text") is None


def test_stories_refuse_a_number_that_is_none():
    with pytest.raises(ValueError, match=f"num_valid=0 must be between 1 and {FIRST_VALID}"):
        CORPORA.build("stories", num_valid=0)


def test_every_kth_document_is_validation(files):
    corpus = files({"a.txt": "<|endoftext|>".join(f"d{n}" for n in range(50))}, valid_fraction=0.1)
    assert texts(corpus, "valid") == ["d9", "d19", "d29", "d39", "d49"]
    assert texts(corpus, "train") == [f"d{n}" for n in range(50) if n % 10 != 9]


def test_one_document_gives_its_tail_to_validation(files):
    text = "\n\n".join(f"Paragraph {n} is not long." for n in range(200))
    corpus = files({"book.txt": text}, valid_fraction=0.1)
    (train,), (valid,) = texts(corpus, "train"), texts(corpus, "valid")
    assert train + valid == text
    assert train.endswith(".\n\n")
    assert valid.startswith("Paragraph")
    assert 0.08 < len(valid) / len(text) < 0.16


@pytest.mark.parametrize("text", ["one two " * 300, "a" * 3_000, "word\n" * 500, "\u4f60\u597d" * 900, "ab"])
def test_any_single_document_is_split_without_loss(files, text):
    corpus = files({"book.txt": text}, valid_fraction=0.2)
    (train,), (valid,) = texts(corpus, "train"), texts(corpus, "valid")
    assert train + valid == text
    assert 1 <= len(valid) <= max(1, 0.31 * len(text))


def test_a_huge_document_is_split_inside_one_of_its_chunks(files, monkeypatch):
    from scratchlm.data import reading

    monkeypatch.setattr(reading, "MAX_CHUNK", 100)
    text = "word after word, " * 100
    corpus = files({"a.txt": "first", "b.txt": text}, valid_fraction=0.3)
    train, (valid,) = texts(corpus, "train"), texts(corpus, "valid")
    assert train[0] == "first"
    assert train[1] + valid == text
    assert 0.25 < len(valid) / len(text) < 0.4


def test_valid_paths_are_the_validation_split_and_nothing_else(files, tmp_path):
    corpus = files(
        {"all/a.txt": "a", "all/held-out.txt": "h", "all/z.txt": "z"},
        paths=[tmp_path / "all"],
        valid_paths=(str(tmp_path / "all" / "held-out.txt"),),
    )
    assert texts(corpus, "train") == ["a", "z"]
    assert texts(corpus, "valid") == ["h"]


def test_a_folder_is_read_in_the_order_of_names_without_hidden_and_unknown_files(files, caplog):
    contents = {
        "b/2.jsonl": '{"text": "two"}',
        "b/1.txt.gz": gzip.compress(b"one"),
        "c.txt": "three",
        ".hidden/x.txt": "x",
        ".y.txt": "y",
        "photo.png": b"\x89PNG",
    }
    corpus = files(contents, valid_fraction=0.5)
    assert sorted(texts(corpus, "train") + texts(corpus, "valid")) == ["one", "three", "two"]
    assert texts(corpus, "train") == ["one", "three"]
    assert "left out 1 file of another kind, photo.png" in caplog.text


def test_the_fingerprint_tells_texts_and_settings_apart(files):
    first = files({"a.txt": "one two three"}).fingerprint()
    assert files({"a.txt": "one two three"}).fingerprint() == first
    assert files({"a.txt": "one two thref"}).fingerprint() != first
    assert files({"a.txt": "one two three"}, valid_fraction=0.2).fingerprint() != first
    stories = [CORPORA.build("stories", num_train=3, seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert stories[0] == stories[1] != stories[2]


def test_the_number_of_bytes_is_known_where_files_are_plain(files):
    assert files({"a.txt": "x" * 1_000}, valid_fraction=0.1).num_bytes("valid") == 100
    assert files({"a.jsonl": "{}"}).num_bytes("train") is None


@pytest.mark.parametrize(
    "contents", [{"a.txt": ""}, {"a.txt": " \n"}, {"a.jsonl": "\n"}, {"a.txt": "", "b.txt": "\n"}]
)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_empty_corpus_is_named(files, contents, split):
    with pytest.raises(ValueError, match="empty, there is no text in it; give a file with some text"):
        texts(files(contents), split)


def test_an_empty_validation_file_is_named(files, tmp_path):
    corpus = files(
        {"a.txt": "a", "v.txt": ""}, paths=[tmp_path / "a.txt"], valid_paths=(str(tmp_path / "v.txt"),)
    )
    assert texts(corpus, "train") == ["a"]
    with pytest.raises(ValueError, match=r"v.txt: empty, there is no text"):
        texts(corpus, "valid")


def test_one_byte_is_too_little_to_split(files):
    with pytest.raises(ValueError, match="1 characters are too few to keep 5% of them for validation"):
        texts(files({"a.txt": "a"}), "train")


def test_a_missing_path_is_named(files, tmp_path):
    with pytest.raises(ValueError, match=r"gone.txt: no such file or folder"):
        texts(files({}, paths=[tmp_path / "gone.txt"]), "train")
    (tmp_path / "bare").mkdir()
    with pytest.raises(
        ValueError, match=r"bare: no file of a known kind in this folder; known: .txt, .jsonl"
    ):
        texts(files({}, paths=[tmp_path / "bare"]), "train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"valid_fraction": 0.0}, "valid_fraction=0.0 must be above 0 and at most 0.5"),
        ({"valid_fraction": 0.6}, "valid_fraction=0.6"),
        ({"errors": "ignore"}, "'strict' or 'replace'"),
        ({"text_kye": "a"}, "Did you mean 'text_key'"),
    ],
)
def test_bad_settings_are_refused(files, settings, message):
    with pytest.raises(ValueError, match=message):
        files({"a.txt": "a"}, **settings)
    with pytest.raises(ValueError, match="paths is empty"):
        CORPORA.build("files", paths=())


@pytest.mark.parametrize("name", REMOTE)
def test_remote_corpora_say_what_they_are_and_how_to_fetch_them(tmp_path, name):
    corpus = CORPORA.build(name, folder=str(tmp_path))
    assert corpus.licence
    one_file_for_both = name == "tiny-shakespeare"
    assert {file.split for file in corpus.files} == ({"train"} if one_file_for_both else {"train", "valid"})
    assert len({file.name for file in corpus.files}) == len(corpus.files)
    for file in corpus.files:
        assert file.url.startswith(
            ("https://huggingface.co/datasets/", "https://raw.githubusercontent.com/karpathy/char-rnn/")
        )
        assert file.sha256 is None or len(file.sha256) == 64
    assert not corpus.is_here()
    with pytest.raises(
        ValueError, match=f"{name}: .* is not here; fetch it first: scratchlm corpus fetch {name}"
    ):
        next(corpus.chunks("train"))


def test_a_fetched_file_of_the_wrong_size_is_refused(tmp_path):
    (tmp_path / "tinystories").mkdir()
    (tmp_path / "tinystories" / "TinyStoriesV2-GPT4-valid.txt").write_bytes(b"too short")
    with pytest.raises(ValueError, match=r"valid.txt: 9 bytes instead of 22502601; remove it"):
        next(CORPORA.build("tinystories", folder=str(tmp_path)).chunks("valid"))


def test_tiny_shakespeare_is_cut_at_nine_tenths_of_its_characters(tmp_path):
    corpus = CORPORA.build("tiny-shakespeare", folder=str(tmp_path))
    text = ("To be, or not to be.\n" * 60_000)[: corpus.files[0].size]
    (tmp_path / "tiny-shakespeare").mkdir()
    (tmp_path / "tiny-shakespeare" / "input.txt").write_text(text, encoding="utf-8")
    train, valid = ("".join(texts(corpus, split)) for split in ("train", "valid"))
    assert train + valid == text
    assert len(train) == int(0.9 * 1_115_394) == corpus.num_bytes("train")
    assert len(valid) == 111_540 == corpus.num_bytes("valid")


def test_a_corpus_can_be_read_in_part(tmp_path):
    stories = [f"Story {number:02} ends here." for number in range(50)]
    (tmp_path / "tinystories").mkdir()
    whole, part = (
        CORPORA.build("tinystories", folder=str(tmp_path), **settings)
        for settings in ({}, {"train_bytes": 2 * len(stories[0]) + 1})
    )
    for file in whole.files:
        path = tmp_path / "tinystories" / file.name
        path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    sized = tuple(file._replace(size=None) for file in whole.files)
    whole.files = part.files = sized
    assert texts(part, "train") == stories[:3]
    assert texts(part, "valid") == texts(whole, "valid") == stories
    assert part.fingerprint() != whole.fingerprint()
    with pytest.raises(ValueError, match=r"train_bytes=0 must be at least 1"):
        CORPORA.build("tinystories", train_bytes=0)


def test_fetch_brings_every_file_and_the_corpus_reads_it(tmp_path, monkeypatch):
    import http.server
    import threading

    source = tmp_path / "source"
    source.mkdir()
    rows = ["", " = First = \n", " text of it . \n", " = = Part = = \n", " = Second = \n", " more \n"]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), source / "train.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": rows[:3]}), source / "valid.parquet")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(source), **kwargs)

        def log_message(self, format, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        corpus = CORPORA.build("wikitext-2", folder=str(tmp_path / "cache"))
        assert isinstance(corpus, RemoteCorpus)
        address = f"http://127.0.0.1:{server.server_port}"
        corpus.files = tuple(RemoteFile(s, f"{address}/{s}.parquet", None, None) for s in ("train", "valid"))
        seen = []
        paths = corpus.fetch(lambda name, here, total: seen.append((name, here, total)))
        server.shutdown()
    size = (source / "valid.parquet").stat().st_size
    assert seen[-1] == ("valid.parquet", size, size)
    assert all(path.is_file() for path in paths)
    assert corpus.is_here()
    assert texts(corpus, "train") == [
        " = First = \n text of it . \n = = Part = = \n",
        " = Second = \n more \n",
    ]
    assert len(corpus.fingerprint()) == 64


def test_articles_begin_at_their_titles_only():
    rows = [" = A = \n", " 1 = 2 \n", " = = B = = \n", " = = = C = = = \n", " = D = \n"]
    assert list(join_articles(iter(rows))) == ["".join(rows[:4]), rows[4]]


@pytest.mark.parametrize(
    ("name", "num_documents"),
    [("tinystories_valid.txt", 200), ("gutenberg_children.txt", 123), ("names.txt", 1)],
)
def test_real_files_are_read_whole(shared_data, name, num_documents):
    path = shared_data / "pretrain" / name
    corpus = CORPORA.build("files", paths=(str(path),))
    train, valid = texts(corpus, "train"), texts(corpus, "valid")
    assert len(train) + len(valid) == max(2, num_documents)
    raw = path.read_text(encoding="utf-8").replace("<|endoftext|>", "").replace("\n", "")
    assert sum(len(text.replace("\n", "")) for text in train + valid) == len(raw)
