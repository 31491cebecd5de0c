"The cache of decoded images: whatever is done to it, the bytes are right or there are none."

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slowconv import cache, loaders
from slowconv.cache import (
    UnlikeRows,
    cache_folder,
    cached,
    find_key,
    list_entries,
    main,
    open_entry,
    write_entry,
)
from slowconv.data import fashion_collate, get_dls_from_dataset_dict
from slowconv.loaders import ColumnDataset, get_columns

key = "ab" * 32


@pytest.fixture
def folder(tmp_path):
    "Where the cache is to be; there is none yet."
    return tmp_path / "cache"


def made_up(n=12, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8)
    return {"image": images, "label": np.arange(n)}


def parts(columns, step=5):
    n = len(columns["label"])
    return ({k: v[i : i + step] for k, v in columns.items()} for i in range(0, n, step))


def same(a, b):
    return list(a) == list(b) and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture
def entry(folder):
    write_entry(key, parts(made_up()), 12, "made up")
    return folder / key


@pytest.fixture
def ds():
    columns = made_up()
    return datasets.Dataset.from_dict({k: list(v) for k, v in columns.items()})


def use(ds, calls=None):
    "The columns of `ds` through the cache."

    def chunks():
        if calls is not None:
            calls.append(1)
        return parts(made_up())

    return cached(ds, chunks, 10_000, "made up")


# one entry


def test_what_is_written_is_read(entry):
    assert same(open_entry(key), made_up())
    assert open_entry("cd" * 32) is None


def test_the_folder(monkeypatch, folder, tmp_path):
    assert cache_folder() == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SLOWCONV_CACHE", "~/c")
    assert cache_folder() == tmp_path / "c"
    monkeypatch.delenv("SLOWCONV_CACHE")
    assert cache_folder().name == "slowconv"


dtypes = st.sampled_from(["uint8", "uint16", "int64", "float32", "bool"])


@given(n=st.integers(1, 9), dtype=dtypes, step=st.integers(1, 9), tail=st.lists(st.integers(0, 3)))
def test_any_shape_and_type(n, dtype, step, tail):
    shutil.rmtree(cache_folder(), ignore_errors=True)
    a = np.arange(n * int(np.prod(tail[:3]))).reshape(n, *tail[:3]).astype(dtype)
    write_entry(key, ({"a": a[i : i + step]} for i in range(0, n, step)), n)
    got = open_entry(key)["a"]
    assert got.dtype == a.dtype and np.array_equal(got, a)


def test_columns_are_read_only(entry):
    with pytest.raises(ValueError, match="read-only"):
        open_entry(key)["image"][0] = 0


def test_a_column_with_a_hostile_name_stays_in_its_folder(folder):
    names = ["../../evil", "/etc/passwd", "a\0b", "..", ""]
    write_entry(key, [{name: np.zeros(2) for name in names}], 2)
    assert list(open_entry(key)) == names
    assert sorted(p.name for p in (folder / key).iterdir()) == [*"01234", "manifest"]


def forge(entry, **changes):
    "A manifest whose own hash is right, and whose second column is not what was written."
    content = json.loads((entry / "manifest").read_bytes().partition(b"\n")[2])
    content["columns"][1] |= changes
    raw = json.dumps(content).encode()
    (entry / "manifest").write_bytes(hashlib.sha256(raw).hexdigest().encode() + b"\n" + raw)


@pytest.mark.parametrize("dtype", ["|O", "O", "object", "<M8[s]", "V8", "<U2", "i8,i8", "|O8"])
def test_nothing_but_numbers_is_read(entry, dtype):
    "Bytes that are taken for Python objects are addresses: even with all hashes right they are refused."
    forge(entry, dtype=dtype)
    with pytest.raises(ValueError, match="no type of plain numbers"):
        open_entry(key)


@pytest.mark.parametrize("rows", [np.array(["a", "b"]), np.array([{}, None]), np.array([1j, 2j])])
def test_nothing_but_numbers_is_written(folder, rows):
    with pytest.raises(UnlikeRows, match="array of numbers"):
        write_entry(key, [{"a": rows}], 2)
    assert list(folder.iterdir()) == []


def test_an_entry_under_the_name_of_another(entry):
    other = "cd" * 32
    entry.rename(entry.with_name(other))
    with pytest.raises(ValueError, match="that of another entry"):
        open_entry(other)


def test_rows_that_do_not_stack(folder):
    with pytest.raises(UnlikeRows):
        write_entry(key, [{"a": np.zeros((2, 3))}, {"a": np.zeros((2, 4))}], 4)
    with pytest.raises(ValueError, match="72 bytes came instead of 96"):
        write_entry(key, [{"a": np.zeros((3, 3))}], 4)
    assert list(folder.iterdir()) == []


# harm


def every_byte(path):
    "Flip one bit at a time: everywhere in small files, at some places in large ones."
    size = path.stat().st_size
    return range(0, size, max(1, size // 40))


@pytest.mark.parametrize("file", ["0", "1", "manifest"])
def test_a_flipped_bit_anywhere_is_found(entry, file):
    good = (entry / file).read_bytes()
    for at in every_byte(entry / file):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        (entry / file).write_bytes(bad)
        with pytest.raises((ValueError, KeyError, TypeError)):
            open_entry(key)
    (entry / file).write_bytes(good)
    assert same(open_entry(key), made_up())


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def swap(path):
    path.write_bytes(path.read_bytes()[::-1])


def grow(path):
    path.write_bytes(path.read_bytes() + b"x")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, swap, grow, empty, os.remove])
@pytest.mark.parametrize("file", ["0", "1", "manifest"])
def test_what_is_broken_is_said_and_made_again(ds, folder, harm, file):
    use(ds)
    path = next(folder.iterdir())
    harm(path / file)
    with pytest.warns(UserWarning, match="broken and is made again"):
        assert same(use(ds), made_up())
    calls = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(use(ds, calls), made_up())
    assert calls == [] and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("text", ["null", "[]", "3", "{}", "[" * 5000, "\xff"])
@pytest.mark.parametrize("hashed", [False, True])
def test_a_manifest_of_other_json(ds, folder, text, hashed):
    use(ds)
    raw = text.encode("latin-1")
    digest = hashlib.sha256(raw).hexdigest().encode() + b"\n" if hashed else b""
    (next(folder.iterdir()) / "manifest").write_bytes(digest + raw)
    with pytest.warns(UserWarning, match="made again"):
        assert same(use(ds), made_up())


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["_write_columns", "_flush", "_flush_folder"])
def test_a_full_disk(ds, folder, monkeypatch, where):
    monkeypatch.setattr(cache, where, full)
    with pytest.warns(UserWarning, match="No space left.*decoded into memory"):
        assert use(ds) is None
    monkeypatch.undo()
    monkeypatch.setenv("SLOWCONV_CACHE", str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(use(ds), made_up())


def test_a_disk_without_the_room_is_not_filled(ds, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.warns(UserWarning, match="of the disk are free"):
        assert use(ds) is None
    assert not folder.exists()


def test_neither_disk_nor_memory(ds, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    monkeypatch.setattr(cache, "free_memory", lambda: 100)
    with pytest.raises(MemoryError, match=r"\$SLOWCONV_CACHE can name a folder with more room"):
        use(ds)


def test_a_file_where_the_folder_should_be(ds, folder):
    folder.write_text("in the way")
    with pytest.warns(UserWarning, match=r"\$SLOWCONV_CACHE can name another"):
        assert use(ds) is None
    assert folder.read_text() == "in the way"


def read_only(*args, **kwargs):
    raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_read_only_folder_is_still_read(ds, folder, monkeypatch):
    use(ds)
    for name in ("mkdir", "rename"):
        monkeypatch.setattr(os, name, read_only)
    calls = []
    assert same(use(ds, calls), made_up()) and calls == []
    cut(next(folder.iterdir()) / "0")
    with pytest.warns(UserWarning, match="cannot be removed.*Read-only") as said:
        assert use(ds) is None  # broken, and it stays: decoded into memory
    assert len(said) == 1


def test_an_interrupt_leaves_nothing(ds, folder):
    def chunks():
        yield from list(parts(made_up()))[:1]
        raise KeyboardInterrupt

    try:
        cached(ds, chunks, 10_000)
    except KeyboardInterrupt:
        pass
    assert list(folder.iterdir()) == []


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(folder, entry):
    "Whoever has written within the hour may be alive."
    names = {name: f".{i:016}.tmp" for i, name in enumerate(["old", "new", "active"])}
    names["notes"] = "my.tmp"
    for name in names.values():
        (folder / name).mkdir()
    (folder / names["active"] / "0").write_text("just now")
    for name in ("old", "active", "notes"):
        os.utime(folder / names[name], (0, 0))
    write_entry("cd" * 32, parts(made_up()), 12)
    left = {p.name for p in folder.iterdir()}
    assert left == {key, "cd" * 32, names["new"], names["active"], names["notes"]}
    main(clear=True)
    assert [p.name for p in folder.iterdir()] == [names["notes"]]


def test_many_at_once(ds, folder):
    "Threads race for one entry: each has the right bytes, one entry stays."
    got = []
    threads = [threading.Thread(target=lambda: got.append(use(ds))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 8 and all(same(columns, made_up()) for columns in got)
    assert len(list(folder.iterdir())) == 1


killed_code = """
import os, signal, sys
import numpy as np
from slowconv import cache
at, n = int(sys.argv[1]), [0]
def counted(f):
    def g(*args, **kwargs):
        n[0] += 1
        if n[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return f(*args, **kwargs)
    return g
for name in ("_write_columns", "_flush", "_flush_folder", "_is_plain", "_n_bytes"):
    setattr(cache, name, counted(getattr(cache, name)))
os.rename, os.fsync, os.open = counted(os.rename), counted(os.fsync), counted(os.open)
cache.write_entry("ab" * 32, ({"a": np.full((5, 3), i)} for i in range(2)), 10)
print("done", n[0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no SIGKILL here")
def test_killed_at_each_step(folder):
    "Before each write, flush and rename; a kill is followed by a writer and a reader."
    code, steps = killed_code.replace("print(", "sys.exit("), range(1, 40)
    runner = f"""
import os, sys
sys.argv = ["", "0"]
import numpy as np
from slowconv import cache
code = compile({code!r}, "killed", "exec")
for at in {list(steps)!r}:
    pid = os.fork()
    if pid == 0:
        sys.argv[1] = str(at)
        try:
            exec(code, {{}})
        finally:
            os._exit(0)
    killed = os.waitpid(pid, 0)[1] == 9
    try:
        found = cache.open_entry("ab" * 32)
    except Exception as e:
        sys.exit(f"step {{at}}: {{e!r}}")
    want = np.repeat([0, 1], 5)[:, None].repeat(3, 1)
    assert found is None or np.array_equal(found["a"], want), at
    assert found is not None or killed, at
    print(at, killed, found is not None)
    if found is not None:
        cache.remove_entry("ab" * 32)
"""
    done = subprocess.run([sys.executable, "-c", runner], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == len(steps)
    assert [r[1] for r in rows].count("True") >= 10, "few of the steps were killed"
    assert rows[-1][1] == "False", "more steps than were tried"


# the key


def of(**columns):
    return datasets.Dataset.from_dict(columns)


def test_the_key_is_that_of_the_content(dsd):
    train = dsd["train"]
    keys = [
        find_key(train),
        find_key(train.select([1, 0, *range(2, 70)])),
        find_key(train.select(range(69))),
        find_key(train.rename_column("idx", "i")),
        find_key(train.cast_column("idx", datasets.Value("int32"))),
        find_key(dsd["test"]),
    ]
    assert len(set(keys)) == len(keys) and all(len(k) == 64 for k in keys)
    assert find_key(train.select(range(70))) == keys[0]


def test_the_key_does_not_trust_a_fingerprint(dsd, tmp_path):
    "A changed Arrow file keeps the fingerprint that state.json says: its images are others."
    a = datasets.Dataset.from_dict({"label": [1, 2]})
    b = datasets.Dataset.from_dict({"label": [1, 3]})
    b._fingerprint = a._fingerprint
    assert find_key(a) != find_key(b)


def test_the_key_of_images_that_stand_by_their_path(tmp_path):
    from PIL import Image

    path = tmp_path / "a.png"
    Image.new("L", (3, 3), 1).save(path)
    ds = of(image=[str(path)], label=[1]).cast_column("image", datasets.Image())
    before = find_key(ds)
    assert before == find_key(ds)
    Image.new("L", (3, 3), 2).save(path)
    assert find_key(ds) != before
    path.unlink()
    assert find_key(ds) is None


def test_images_by_path_in_lists_have_no_key(tmp_path):
    from PIL import Image

    Image.new("L", (3, 3), 1).save(tmp_path / "a.png")
    feature = datasets.List(datasets.Image())
    features = datasets.Features(image=feature, label=datasets.Value("int64"))
    rows = {"image": [[str(tmp_path / "a.png")]], "label": [1]}
    assert find_key(datasets.Dataset.from_dict(rows, features)) is None


# through a DatasetDict


@pytest.fixture
def all_large(monkeypatch):
    "Every set counts as large enough for the cache."
    monkeypatch.setattr(loaders, "_is_large", lambda n, size: True)


@pytest.mark.parametrize("collate_fn", [fashion_collate, list])
def test_the_cache_changes_no_batch(dsd, folder, monkeypatch, collate_fn):
    dsd = dsd.with_format("torch")
    with get_dls_from_dataset_dict(dsd, collate_fn) as dls:
        plain = list(dls.valid)
    assert not folder.exists(), "small sets are not cached"
    monkeypatch.setattr(loaders, "_is_large", lambda n, size: True)
    for _ in range(2):
        with get_dls_from_dataset_dict(dsd, collate_fn) as dls:
            assert isinstance(dls.valid.dataset.columns["image"], np.memmap)
            for a, b in zip(plain, dls.valid, strict=True):
                for x, y in zip(a, b, strict=True):
                    x, y = ([*v.values()] if isinstance(v, dict) else [v] for v in (x, y))
                    assert all(
                        p.dtype == q.dtype and torch.equal(p, q) for p, q in zip(x, y, strict=True)
                    )
    assert len(list(folder.iterdir())) == 2


def test_a_batch_is_ours_to_change(dsd, all_large):
    with get_dls_from_dataset_dict(dsd.with_format("torch")) as dls:
        before = next(iter(dls.valid))["image"].clone()
        next(iter(dls.valid))["image"].zero_()
        dls.valid.dataset[0]["image"].zero_()
        assert torch.equal(next(iter(dls.valid))["image"], before)


def test_a_process_is_sent_the_name_of_the_file_and_not_its_bytes(folder):
    import pickle

    columns = {"image": np.zeros((1000, 28, 28), np.uint8), "label": np.arange(1000)}
    write_entry(key, [columns], 1000)
    mapped = open_entry(key)
    sent = pickle.dumps(ColumnDataset(mapped, whole=True))
    assert len(sent) < 5000
    got = pickle.loads(sent)
    assert isinstance(got.columns["image"], np.memmap)
    assert torch.equal(got.__getitems__([7, 3])["label"], torch.tensor([7, 3]))
    part = ColumnDataset({"label": mapped["label"][5:]})
    assert pickle.loads(pickle.dumps(part))[0]["label"] == 5


def test_get_columns_decodes_once(dsd, all_large, monkeypatch):
    first = get_columns(dsd["train"])
    decode, calls = datasets.Image.decode_example, []

    def counted(*args, **kwargs):
        calls.append(1)
        return decode(*args, **kwargs)

    monkeypatch.setattr(datasets.Image, "decode_example", counted)
    assert same(get_columns(dsd["train"]), first)
    assert len(calls) <= 1, "more than the look at the first row"


# the command


def test_the_command_lists_verifies_and_clears(entry, folder, capsys):
    main(verify=False, clear=False)
    out = capsys.readouterr().out
    assert str(folder) in out and "1 cached" in out and "made up" in out
    main(verify=True, clear=False)
    assert "verified" in capsys.readouterr().out
    (folder / "notes.txt").write_text("mine")
    main(verify=False, clear=True)
    assert "removed" in capsys.readouterr().out
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_the_command_finds_a_flipped_bit(entry, capsys):
    swap(entry / "0")
    main(verify=False, clear=False)  # sizes are right
    with pytest.raises(SystemExit) as e:
        main(verify=True, clear=False)
    assert e.value.code and "broken" in capsys.readouterr().out
    cut(entry / "0")
    with pytest.raises(SystemExit):
        main(verify=False, clear=False)
    assert "not as long as it was written" in capsys.readouterr().out
    main(verify=False, clear=True)
    assert list_entries() == []


@pytest.mark.parametrize("odd", ["a file", "a dangling link", "a link inside", "a folder inside"])
def test_something_odd_under_the_name_of_an_entry(ds, folder, capsys, odd):
    "It is listed, cleared, and does not stand in the way of the entry."
    use(ds)
    path = next(folder.iterdir())

    def spoil():
        if odd == "a file":
            path.write_text("x")
        elif odd == "a dangling link":
            path.symlink_to("nowhere")
        else:
            path.mkdir()
            if odd == "a folder inside":
                (path / "manifest").mkdir()
            else:
                (path / "manifest").symlink_to("nowhere")

    cache.remove_entry(path.name)
    spoil()
    with pytest.raises(SystemExit):
        main()
    assert "1 cached" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="made again"):
        assert same(use(ds), made_up())
    cache.remove_entry(path.name)
    spoil()
    main(clear=True)
    assert list(folder.iterdir()) == []


def test_the_command_where_the_folder_is_a_file(folder):
    folder.write_text("in the way")
    with pytest.raises(SystemExit) as e:
        main()
    assert "Not a directory" in e.value.code


def test_the_command_of_an_empty_cache(capsys):
    main(verify=False, clear=False)
    assert "0 cached" in capsys.readouterr().out


def test_nothing_of_slowconv_unpickles():
    from pathlib import Path

    for path in Path(cache.__file__).parent.glob("*.py"):
        text = path.read_text()
        for word in ("import pickle", "torch.load", "trust_remote_code", "allow_pickle=True"):
            assert word not in text, path.name
