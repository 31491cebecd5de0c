"The explorer: what goes in, and what a real browser makes of it."

import base64
import html
import io
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from selenium.webdriver import Keys
from selenium.webdriver.common.action_chains import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.support.ui import WebDriverWait

from slowconv import ConvExplorer, left_edge, out_size, top_edge
from slowconv.explore import all_panels, usual_kernels

names = "stride", "padding", "dilation"


def conv2d(image, kernel, transposed=False, **settings):
    "The map as torch has it, in double precision."
    x, w = (torch.as_tensor(a).double() for a in (image, kernel))
    x, w = (a.view(1, -1, *a.shape[-2:]) for a in (x, w))
    return (F.conv_transpose2d if transposed else F.conv2d)(x, w, **settings)[0, 0]


def embedded(explorer):
    "What an explorer hands to its page."
    return json.loads(
        html.unescape(re.search('data-explorer="(.*?)"', explorer._repr_html_()).group(1))
    )


# --- what goes in ---

ramp = torch.arange(20.0).reshape(4, 5) / 19
levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
batch = torch.rand(5, 8, 9)


@pytest.mark.parametrize(
    "forms, expected",
    [
        ([ramp, ramp[None], ramp.double(), ramp.numpy(), [ramp], ramp[None, None]], [ramp]),
        ([ramp.clone().requires_grad_(), ramp.T.contiguous().T], [ramp]),
        ([levels, Image.fromarray(levels.numpy())], [levels / 255]),
        ([batch, batch[:, None], list(batch), batch.numpy()], list(batch)),
        ([batch[:3, None]], list(batch[:3])),
        ([[ramp, levels]], [ramp, levels / 255]),
    ],
)
def test_images_in_many_forms(forms, expected):
    for form in forms:
        images = ConvExplorer(form, torch.ones(2, 2)).images
        assert all(torch.equal(*pair) for pair in zip(images, expected, strict=True))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"image": torch.full((8, 8), torch.nan)}, "the image holds nan"),
        ({"image": torch.rand(25, 8, 8)}, "25 images"),
        ({"kernels": {"odd": torch.rand(9, 9)}}, r"kernels\['odd'\] has shape \[9, 9\]"),
        ({"stride": 1.5}, "stride=1.5; expected a whole number from 1 to 9"),
        ({"padding": -1}, "padding=-1; expected a whole number from 0 to 9"),
        ({"titles": ["a", "b"]}, "2 titles for 1 images"),
        ({"kernel": torch.rand(3, 3, 3)}, r"the image has shape \[8, 8\]; give \[3,h,w\]"),
        ({"at": (0, -1)}, r"at=\(0, -1\); the map has shape \[6, 6\]"),
    ],
)
def test_what_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ConvExplorer(**{"image": torch.rand(8, 8), "kernel": top_edge, **kwargs})


def test_the_kernels_to_choose_from():
    more = {"mine": torch.rand(1, 1, 3, 3), "blur": left_edge}
    explorer = ConvExplorer(ramp, torch.ones(2, 2), kernels=more)
    assert list(explorer.kernels)[:3] == ["given", "mine", "blur"]
    assert torch.equal(explorer.kernels["blur"], left_edge)
    assert set(usual_kernels) < set(explorer.kernels)
    chosen = embedded(ConvExplorer(ramp, left_edge))
    assert chosen["kernels"][chosen["kernel"]]["title"] == "left edges"
    few = ConvExplorer(ramp, left_edge, kernels={"mine": top_edge}, panels=["products"])
    assert list(few.kernels) == ["given", "mine"]


def test_it_opens_on_the_first_window_of_half_the_strength_or_where_it_is_told():
    image = torch.zeros(6, 6)
    image[2, 4], image[4, 1] = 0.5, 1
    for im, at in ((image, (2, 4)), (-image, (2, 4)), (image**2, (4, 1)), (image * 0, (0, 0))):
        assert ConvExplorer(im, torch.ones(1, 1)).at == at
    told = embedded(ConvExplorer(image, torch.ones(1, 1), stride=2, at=(2, 0)))
    assert (told["row"], told["col"]) == (2, 0)


def still(**kwargs):
    "The still picture of a black square on white, as int [H,W,3], and its alt text."
    image = torch.ones(8, 8)
    image[3:6, 4:7] = 0
    png, said = ConvExplorer(image, torch.ones(3, 3), **{"panels": (), **kwargs})._repr_png_()
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int), said["alt"]


def test_the_still_picture_frames_the_window_and_says_its_answer():
    a, alt = still(at=(3, 4))
    assert alt == (
        "A convolution: an image of 8 by 8 pixels, a kernel of 3 by 3 numbers, and their feature "
        "map of 6 by 6. The framed window's answer is 0.00."
    )
    orange = (a[..., 0] > 200) & (abs(a[..., 1] - 127) < 40) & (a[..., 2] < 60)
    (y0, y1), (x0, x1) = ((i.min(), i.max()) for i in orange[:, : a.shape[1] // 2].nonzero())
    assert (a[y0:y1, x0:x1].max(2) < 30).mean() > 0.75  # what is framed is black


@pytest.mark.parametrize("padding, stride, hatched", [(0, 1, ""), (2, 1, "grey"), (0, 2, "violet")])
def test_the_still_picture_hatches_padding_and_what_is_never_read(padding, stride, hatched):
    a, alt = still(padding=padding, stride=stride, at=(0, 0))
    r, g, b = a[:, :270].transpose(2, 0, 1)
    assert (((r == g) & (g == b) & (80 < g) & (g < 140)).sum() > 3000) == (hatched == "grey")
    violet, said = (b - g > 60).sum() > 800, "15 pixels that no window reads" in alt
    assert violet == said == (hatched == "violet")


def test_the_still_picture_has_the_panels_of_its_call():
    height = {p: still(panels=p)[0].shape[0] for p in ((), ("matrix",))}
    assert height["matrix",] > height[()] + 60
    alt = still(panels=("stride", "kernels"), stride=2)[1]
    assert "Stride 2; circles: the middles of all windows; dashed: the next window; striped" in alt


def test_the_html_is_small_the_same_each_time_and_needs_nothing():
    images = (torch.rand(6, 28, 28) * 255).round() / 255
    title = "</script><b>\"'&"
    explorer = ConvExplorer(images, top_edge, titles=[title] * 6, kernels={title: torch.ones(1, 1)})
    page = explorer._repr_html_()
    assert page == explorer._repr_html_()
    png, said = explorer._repr_png_()
    picture = f'src="data:image/png;base64,{base64.b64encode(png).decode()}"'
    assert f'alt="{html.escape(said["alt"])}" {picture}' in page and repr(explorer) == said["alt"]
    assert len(picture) < 130_000 and len(page) - len(picture) < 60_000
    outside = r"https?:|\bimport\(|\bfetch\(|\bsrc=|\bhref=|@import|url\("
    assert not re.search(outside, page.replace(picture, ""))
    assert title not in page and embedded(explorer)["images"][0]["title"] == title


# --- in a browser ---


class Page:
    "One explorer of an open page."

    def __init__(self, browser, i=0):
        self.browser, self.i = browser, i

    def js(self, body, *args):
        find = (
            "const el = document.querySelectorAll('[data-explorer]')[arguments[0]];"
            "const root = el.shadowRoot, $ = id => root.getElementById(id);"
        )
        return self.browser.run(find + body, self.i, *args)

    @property
    def state(self):
        return self.js("return el.state")

    def change(self, name, value):
        "As if it had been typed: a value and its events."
        self.js(
            "const input = $(arguments[1]); input.value = arguments[2];"
            "for (const type of ['input', 'change']) input.dispatchEvent(new Event(type, {bubbles: true}));",
            name,
            value,
        )

    def click(self, text):
        self.js(
            "[...root.querySelectorAll('button')].find(b => b.textContent.trim() === arguments[1]).click()",
            text,
        )

    def keys(self, element, *keys):
        "Real key presses, on an element of the shadow root."
        element = self.js("const e = $(arguments[1]); e.focus(); return e", element)
        element.send_keys(*keys)

    def drag(self, element, *points, kind="mouse"):
        "A real pointer: down on the first point, over the others, up. Points are shares of width and height."
        box = self.js(
            "const e = $(arguments[1]); e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]",
            element,
        )
        at = [(int(box[0] + x * box[2]), int(box[1] + y * box[3])) for x, y in points]
        actions = ActionBuilder(self.browser.driver, mouse=PointerInput(kind, f"one {kind}"))
        actions.pointer_action.move_to_location(*at[0]).pointer_down()
        for point in at[1:]:
            actions.pointer_action.move_to_location(*point)
        actions.pointer_action.pointer_up()
        actions.perform()

    def check(self):
        "The map shown is the one that torch computes of what is shown."
        s = self.state
        expected = conv2d(s["image"], s["kernel"], s["transposed"], **{k: s[k] for k in names})
        expected = expected + s["bias"]
        expected = expected.relu() if s["relu"] else expected
        torch.testing.assert_close(torch.tensor(s["map"]).double(), expected, rtol=1e-6, atol=1e-6)
        if not s["transposed"]:
            assert abs(s["sum"] - expected[s["row"], s["col"]]) < 1e-6
        return s


@pytest.fixture
def show(browser, tmp_path):
    "show(*explorers, width=..., scheme=...): the first explorer of a page with all of them."

    def show(*explorers, head="", **kwargs):
        path = tmp_path / "page.html"
        pages = "\n".join(e._repr_html_() for e in explorers)
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{head}'
        path.write_text(f"<!doctype html>{head}<body>{pages}", encoding="utf-8")
        browser.open(path.as_uri(), **kwargs)
        return Page(browser)

    yield show
    assert browser.errors() == []


def settings(n):
    "n settings, odd ones among them: thin images, windows that don't fit, large numbers."
    choose = lambda low, high: torch.randint(low, high + 1, ()).item()  # noqa: E731
    for i in range(n):
        most = (5, 4, 4) if i % 3 else (9, 9, 9)
        s = {k: choose(int(k != "padding"), m) for k, m in zip(names, most, strict=True)}
        s |= {"bias": choose(-18, 18) / 2, "relu": i % 5 == 0, "transposed": i % 4 == 1}
        shapes = (choose(1, 40), choose(1, 40)), (choose(1, 7), choose(1, 7))
        shapes = [(3, *shape) if i % 4 == 2 else shape for shape in shapes]
        yield s | {
            part: (torch.randn(shape) * 10 ** choose(-2, 2 if i % 7 else 7)).tolist()
            for part, shape in zip(("image", "kernel"), shapes, strict=True)
        }


def test_the_map_is_that_of_torch_on_300_settings(show):
    "One channel, three, and transposed."
    page = show(ConvExplorer(ramp, torch.ones(1, 1), panels=["products"]))
    cases = list(settings(300))
    each = "c => { el.set(c); const s = el.state; return [s.map, s.unread, s.size, s.parts] }"
    page.js("document.body.hidden = true")  # nothing is drawn, which takes longer than all else
    shown = page.js(f"return arguments[1].map({each})", cases)
    empty = 0
    for case, (got, unread, size, parts) in zip(cases, shown, strict=True):
        image, kernel = (torch.tensor(case[name]).double() for name in ("image", "kernel"))
        image, kernel = (a.view(-1, *a.shape[-2:]) for a in (image, kernel))
        s = {k: case[k] for k in (*names, "transposed")}
        try:
            alone = [conv2d(*pair, **s) for pair in zip(image, kernel, strict=True)]
        except RuntimeError:  # the kernel is larger than the image, the padding than the output
            empty += 1
            assert got == [] and size == [0, 0]
            continue
        expected = conv2d(image, kernel, **s) + case["bias"]
        expected = expected.relu() if case["relu"] else expected
        atol = 1e-6 * max(a.abs().max().item() for a in (expected, *alone))
        for a, b in zip((got, *parts), (expected, *alone), strict=True):
            torch.testing.assert_close(torch.tensor(a).double(), b, rtol=1e-5, atol=atol)
        # a pixel that is never read has no gradient
        x, ones = torch.zeros_like(image[0], requires_grad=True), torch.ones_like(kernel[0])
        y = conv2d(x + 1, ones, **s)
        y.sum().backward()
        zero = (y if case["transposed"] else x.grad) == 0
        assert unread["rows"] == zero.all(1).nonzero().flatten().tolist()
        assert unread["cols"] == zero.all(0).nonzero().flatten().tolist()
    assert 5 < empty < 100


@pytest.mark.parametrize("image", [torch.randn(12, 9) * 100, levels / 255], ids=["f32", "u8"])
def test_embedded_numbers_are_exact_enough(show, image):
    kernel = torch.randn(3, 3)
    explorer = ConvExplorer(image, kernel, padding=1)
    assert ("u8" in embedded(explorer)["images"][0]) == (image.max() <= 1)
    expected = conv2d(image, kernel, padding=1)
    got = torch.tensor(show(explorer).state["map"]).double()
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_controls_set_the_map(show):
    page = show(ConvExplorer(torch.rand(13, 11), top_edge))
    for name, value in (("stride", 2), ("padding", 3), ("dilation", 2), ("stride", 4)):
        page.change(name, value)
        s = page.check()
        assert s[name] == value
        image, map = page.js("return [$('image').width, $('map').width]")  # in one scale
        assert map / s["size"][1] == pytest.approx(image / (11 + 2 * s["padding"]), abs=1)
    size = [out_size(n, 5, 4, 3) for n in (13, 11)]  # a kernel of 3 reaches over 5 pixels
    assert s["size"] == size and f"The map is {size[0]} by {size[1]} now. Row" in s["text"]
    formula = page.js("return $('formula').textContent")
    note = page.js("return getComputedStyle($('formula').lastChild, '::after').content")
    assert "rounded\u00a0down" in note
    assert f"⌊(13 + 2·3 − 2·(3 − 1) − 1) / 4⌋ + 1 = ⌊{14 / 4:g}⌋ + 1 = {size[0]}" in formula
    # at its limit a button keeps the focus
    page.change("stride", 9)
    page.js("const b = $('stride').parentNode.lastChild; b.focus(); b.click()")
    assert page.check()["stride"] == 9
    assert page.js("return root.activeElement.ariaLabel") == "larger stride"
    page.keys("stride", Keys.ARROW_DOWN)
    assert page.check()["stride"] == 8


def test_size_bias_and_relu(show):
    kernel = torch.arange(9.0).reshape(3, 3) - 5
    page = show(ConvExplorer(torch.rand(9, 8), kernel))
    for size in (4, 5, 7, 5, 4, 3):  # zeros around, and away again
        page.change("size", size)
        got = torch.tensor(page.check()["kernel"])
        at = slice((size >> 1) - 1, (size >> 1) + 2)
        assert got.shape == (size, size) and torch.equal(got[at, at], kernel)
        assert got.abs().sum() == kernel.abs().sum()
    page.change("size", 2)
    assert page.check()["kernel"] == kernel[:2, :2].tolist()
    page.change("bias", "1.5")
    page.click("ReLU")
    state = page.check()
    assert state["bias"] == 1.5 and state["relu"] and min(map(min, state["map"])) == 0
    assert page.js("return $('sum-text').textContent").endswith("after ReLU")


def test_several_channels_each_with_its_slice_and_its_map(show):
    image = torch.zeros(3, 5, 9)
    image[0, 2:, 1:4] = image[:, 2:, 5:8] = 1  # a red block and a white one
    slices = torch.stack([top_edge, -top_edge, torch.zeros(3, 3)])
    page = show(ConvExplorer(image, slices, panels=["channels", "products"], at=(0, 5)))
    state = page.check()
    assert state["products"] == [3, -3, 0] and state["sum"] == 0
    page.js(
        "root.querySelectorAll('#weights input')[10].id = 'weight'"
    )  # the green slice's upper middle
    page.keys("weight", Keys.CONTROL, "a", Keys.NULL, "-2")
    assert page.check()["kernel"][1] == [[1, -2, 1], [0, 0, 0], [-1, -1, -1]]
    assert "Maps: 3, −3, 0. Sum: 0." in page.state["text"]
    page.click("reset")
    page.click("draw")
    page.drag("image", (0.5 / 9, 0.5 / 5), (8.5 / 9, 0.5 / 5))  # white, which the sum doesn't see
    drawn = page.check()
    assert drawn["image"][1][0] == [1.0] * 9 and drawn["map"] == state["map"]
    names = "return [...root.querySelectorAll('#weights canvas')].map(c => c.ariaLabel)"
    assert (
        page.js(names)[3] == "The green channel's map of 3 rows and 7 columns. Row 0, column 5: 0"
    )


def test_transposed_each_pixel_puts_the_kernel_down(show):
    kernel = torch.arange(1.0, 10).view(3, 3)
    image = torch.tensor([[1.0, 0], [0, 2]])
    page = show(ConvExplorer(image, kernel, stride=2, transposed=True, at=(1, 1)))
    assert page.check()["size"] == [5, 5]
    assert page.state["products"] == (2 * kernel).flatten().tolist()
    shown = page.js("return $('products').innerText.split('\\n').slice(0, 3)")
    assert [s for s in shown if s] == ["2 · 1", "2", "of 11"]  # 9 is there already
    page.keys("map", Keys.ARROW_UP)
    said = "Row 0, column 1 of the image. Window: rows 0 to 2, columns 2 to 4 of the output."
    assert said in page.check()["text"]
    page.drag(
        "map", (0.5 / 5, 4.5 / 5)
    )  # the kernel in this corner is that of the lower left pixel
    assert (page.state["row"], page.state["col"]) == (1, 0)
    page.drag("image", (0.9, 0.1))
    assert (page.state["row"], page.state["col"]) == (0, 1)
    page.change("stride", 4)
    assert page.check()["unread"] == {"rows": [3], "cols": [3]}
    assert "Never reached: row 3 and column 3." in page.js("return $('unread').textContent")
    page.change("padding", 4)
    assert "the padding takes it all away" in page.state["text"]
    page.click("transposed")
    page.change("size", 2)
    assert page.check()["size"] == [3, 3] and not page.state["transposed"]


wrong = {
    "1,5": "“1,5” has a comma. Write a point.",
    "1e9": "“1e9” is too large. The most is",
    "-1e309": "“-1e309” is too small. The least is",
    "abc": "“abc” isn't a number.",
    "--3": "“--3” isn't a number.",
    "٣": "“٣” isn't a number.",
    " ": "Nothing is typed there.",
}


def test_what_is_no_number_is_said_and_changes_nothing(show):
    page = show(ConvExplorer(torch.rand(9, 9), top_edge, stride=2))
    page.js("root.querySelectorAll('#weights input')[5].id = 'weight'")
    for field, part, more in (
        ("stride", "dial", {"2.7": "“2.7” isn't a whole number.", "99": "“99” is too large."}),
        ("weight", "weight", {"10000": "“10000” is too large. The most is 9999."}),
    ):
        before = page.check()
        for typed, said in (wrong | more).items():
            page.js("$(arguments[1]).focus()", field)
            page.change(field, typed)
            assert page.js(f"return $('wrong-{part}').textContent").startswith(said)
            assert page.check() | {"text": ""} == before | {"text": ""}
            shown = page.js("const i = $(arguments[1]); return [i.value, i.ariaInvalid]", field)
            assert shown == ["2" if field == "stride" else "0", "true"]
        for typed, v in ((" 3 ", 3), ("+4", 4), ("5e0", 5)):
            page.change(field, typed)
            state = page.check()
            assert (state["stride"] if field == "stride" else state["kernel"][1][2]) == v
            assert page.js(f"return $('wrong-{part}').textContent") == ""


def test_no_number_is_cut(show):
    kernel = torch.tensor([[-9998.5, 0.123456, -0.1], [9999, 1e-4, 1.5e7], [1 / 3, -123.456, 8]])
    page = show(ConvExplorer(torch.rand(9, 9), kernel), width=360)
    cells = """
        const draw = document.createElement('canvas').getContext('2d');
        return [...root.querySelectorAll('#weights input')].map(i => {
          const { fontSize, fontFamily } = getComputedStyle(i);
          draw.font = `${fontSize} ${fontFamily}`;
          return [i.value, draw.measureText(i.value).width, i.clientWidth];
        });
    """
    shown = page.js(cells)
    assert [v for v, *_ in shown[:6]] == ["−9999", "0.12", "−0.10", "9999", "1e−4", "1.5e7"]
    assert all(width <= room for _, width, room in shown), shown


def test_only_the_named_panels_are_seen(show):
    parts = {p: f"#{p}" for p in all_panels}
    parts |= {"products": "#number", "matrix": "#unrolled", "channels": "#weights canvas"}
    choices = [(), ("products", "stride"), ("matrix",), ("padding", "size"), ("dilation", "bias")]
    choices += [("channels",), ("transposed", "bias")]
    given = {p: (torch.rand(3, 9, 9), torch.rand(3, 3, 3)) for p in choices if "channels" in p}
    given = [given.get(p, (torch.rand(9, 9), top_edge)) for p in choices]
    panels = zip(given, choices, strict=True)
    first = show(*(ConvExplorer(*pair, panels=p, at=(0, 0)) for pair, p in panels))
    for i, panels in enumerate(choices):
        page = Page(first.browser, i)
        seen = "return !!root.querySelector(arguments[1])?.getClientRects().length"
        assert {p for p in all_panels if page.js(seen, parts[p])} == set(panels)
        # the formula speaks of what can be set, and the next window of the stride
        sized = {"stride", "padding", "dilation", "size"}
        assert page.js(seen, "#formula") == bool(set(panels) & sized)
        assert ("1·(3" in page.js("return $('formula').textContent")) == ("dilation" in panels)
        assert page.js(seen, "#next") == ("stride" in panels)
        page.keys("map", Keys.ARROW_DOWN)
        assert page.check()["row"] == 1


def test_without_scripts_there_is_a_picture(show, browser):
    cdp = browser.driver.execute_cdp_cmd
    cdp("Emulation.setScriptExecutionDisabled", {"value": True})
    show(ConvExplorer(torch.rand(9, 9), top_edge), width=600)
    cdp("Emulation.setScriptExecutionDisabled", {"value": False})
    picture = "const i = document.querySelector('img'); return [i.naturalWidth, i.width]"
    full, shown = browser.run(picture)
    assert full == 1140 and 500 < shown <= 600 and browser.overflow() == 0
    show(ConvExplorer(torch.rand(9, 9), top_edge))
    assert browser.run("return document.querySelector('img').getClientRects().length") == 0


def test_a_dot_in_each_middle_and_stripes_where_nothing_is_read(show):
    page = show(ConvExplorer(torch.zeros(8, 8), top_edge, stride=2, at=(0, 0)), width=360)
    for p, middles, never in ((0, {1, 3, 5}, {7}), (1, {1, 3, 5, 7}, set())):
        page.change("padding", p)
        said = "row 7 and column 7" if never else "Every pixel is read"
        legends = page.js("return $('unread').textContent")
        assert said in legends and ("Padding: zeros." in legends) == (p > 0)
        url = page.js("return $('image').toDataURL()").partition(",")[2]
        drawn = Image.open(io.BytesIO(base64.b64decode(url))).convert("RGB")
        cell, dots, striped = drawn.width / (8 + 2 * p), set(), set()
        for at in np.ndindex(8 + 2 * p, 8 + 2 * p):
            y, x = (np.array(at) * cell).astype(int)
            tile = np.asarray(drawn).astype(int)[y : y + int(cell), x : x + int(cell)]
            dots |= {at} if tile[int(cell) // 2, int(cell) // 2] @ [1, 0, -1] > 150 else set()
            striped |= {at} if (tile @ [0, -1, 1]).max() > 60 else set()
        assert dots == {(y, x) for y in middles for x in middles}
        assert striped == {at for i in never for j in range(8) for at in ((i, j), (j, i))}
        for key, dashed in ((Keys.END, False), (Keys.HOME, True)):
            page.keys("map", key)
            said = page.js("return $('next').textContent")
            assert ("Dashed: the next window." in said) == dashed and "Each dot" in said


def test_a_number_keeps_its_colour_at_each_stride(show):
    image = torch.zeros(8, 8)
    image[1, 1:4] = 1  # seen by a window at stride 1 alone
    still = [ConvExplorer(image, torch.ones(3, 3), stride=s, padding=1) for s in (1, 3)]
    assert [e.vmax for e in still] == [3, 3] and still[1].map.max() == 2
    page = show(still[1])
    assert page.js("return $('high').textContent") == "3" and max(page.check()["map"][0]) == 2


def test_a_tap_beside_the_windows_highlights_no_pixel(show):
    page = show(ConvExplorer(torch.rand(8, 8), top_edge, stride=4), width=360)
    page.drag("image", (7.5 / 8, 6.5 / 8), kind="touch")
    drawn = "return $('image').toDataURL()"
    tapped, on = page.js(drawn), page.js("return root.activeElement.id")
    page.js("$('image').blur()")
    assert on == "image" and page.js(drawn) == tapped and page.state["col"] == 1
    page.keys("image", Keys.ARROW_DOWN)  # the keyboard's pen is highlighted
    assert page.js(drawn) != tapped


def test_no_window_fits(show):
    page = show(ConvExplorer(torch.rand(5, 5), top_edge))
    page.change("dilation", 3)
    assert page.state["size"] == [0, 0]
    assert "it reaches over 7 × 7 pixels, the image has 5 × 5" in page.state["text"]
    page.change("padding", 1)
    assert page.check()["size"] == [1, 1]


def test_keyboard(show):
    image = torch.arange(81).reshape(9, 9) / 100
    page = show(ConvExplorer(image, top_edge))
    for keys, at in (
        ((Keys.HOME, Keys.PAGE_UP), (0, 0)),
        ((Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT), (1, 2)),
        ((Keys.ARROW_UP, Keys.ARROW_UP), (0, 2)),
        ((Keys.END, Keys.PAGE_DOWN, Keys.ARROW_LEFT), (6, 5)),
    ):
        page.keys("map", *keys)
        state = page.check()
        assert (state["row"], state["col"]) == at
        assert f"column {at[0] * 7 + at[1]} of 49" == page.js("return $('column').textContent")
    assert state["text"] == (
        "Row 6, column 5 of the feature map. Window: rows 6 to 8, columns 5 to 7 of the image. "
        "Products: −0.59, −0.60, −0.61; 0, 0, 0; 0.77, 0.78, 0.79. Sum: 0.54."
    )
    assert page.js("return $('sum').textContent") == "0.54"


def test_pointer_and_touch(show):
    page = show(ConvExplorer(torch.rand(9, 9), top_edge))
    for kind, element, at, expected in (
        ("mouse", "map", (0.5 / 7, 6.5 / 7), (6, 0)),
        ("touch", "image", (5.5 / 9, 4.5 / 9), (3, 4)),
        ("mouse", "image", (0.01, 0.01), (0, 0)),
        ("mouse", "all", (10.5 / 49, 0.5), (1, 3)),
    ):
        page.drag(element, at, kind=kind)
        state = page.check()
        assert (state["row"], state["col"]) == expected


def test_a_kernel_value_is_edited(show):
    page = show(ConvExplorer(torch.rand(9, 9), top_edge))
    page.js("root.querySelectorAll('#weights input')[5].id = 'weight'")
    for typed, weight in (
        ((Keys.CONTROL, "a", Keys.NULL, "-2.5"), -2.5),
        ((Keys.ARROW_UP,), -2.4),
        ((Keys.CONTROL, "a", Keys.NULL, "1e9", Keys.TAB), -2.4),  # too large: as it was before
    ):
        page.keys("weight", *typed)
        assert page.check()["kernel"] == [[-1, -1, -1], [0, 0, weight], [1, 1, 1]]
    assert page.js("return $('weight').value") == "−2.40"


def test_another_kernel_and_another_image(show):
    images, wide = torch.rand(2, 1, 8, 8), {"wide": torch.rand(5, 7)}
    page = show(ConvExplorer(images, top_edge, titles=["one", "two"], kernels=wide))
    page.click("emboss")
    assert page.check()["kernel"] == usual_kernels["emboss"].tolist()
    page.click("wide")
    assert page.check()["size"] == [4, 2]
    page.click("two")
    torch.testing.assert_close(torch.tensor(page.check()["image"]), images[1, 0])
    pressed = "[...root.querySelectorAll('[aria-pressed=true]')].map(b => b.textContent.trim())"
    assert page.js(f"return {pressed}") == ["wide", "two", "point"]


def test_drawing(show):
    page = show(ConvExplorer(torch.zeros(8, 8), top_edge))
    page.click("draw")
    page.drag("image", (0.5 / 8, 2.5 / 8), (7.5 / 8, 2.5 / 8))
    assert page.check()["image"] == [[float(row == 2)] * 8 for row in range(8)]
    page.click("erase")
    page.drag("image", (3.5 / 8, 2.5 / 8), kind="touch")
    assert page.check()["image"][2] == [1, 1, 1, 0, 1, 1, 1, 1]
    page.click("draw")
    page.keys("image", Keys.ARROW_DOWN, Keys.ARROW_RIGHT, " ")
    assert page.check()["image"][5][5] == 1


def test_undo_reset_and_a_link(show):
    page = show(ConvExplorer(torch.zeros(8, 8), top_edge))
    states = [page.check()]
    page.click("draw")
    page.drag("image", (0.5 / 8, 2.5 / 8), (7.5 / 8, 2.5 / 8))
    states.append(page.check())
    page.js("root.querySelectorAll('#weights input')[5].id = 'weight'")
    steps = [("weight", 0.25), ("stride", 2), ("padding", 1), ("bias", -1)]
    for field, v in steps:
        page.js("$(arguments[1]).focus()", field)
        page.change(field, v)
        states.append(page.check())
    page.click("copy link")
    address = page.browser.run("return location.href")
    page.click("reset")
    same = lambda a, b: a | {"text": ""} == b | {"text": ""}  # noqa: E731
    assert same(page.check(), states[0])
    for state in states[::-1]:
        page.click("undo")
        assert same(page.check(), state)
    page.click("undo")  # nothing is left to undo
    assert same(page.check(), states[0])
    # the address, opened anew and in a page that is open; and addresses of others
    for other in (
        "about:blank",
        address.split("#")[0] + "#a-heading",
        address.replace("mark", "x"),
    ):
        page.browser.driver.get(other)
        page.browser.driver.get(address)
        assert same(page.check(), states[-1])
    for wrong in ("stride%22%3A2", "stride%22%3A0"), ("%5B%5B-1", "%5B%5B1e999"), ("%7D", ""):
        page.browser.driver.get("about:blank")
        page.browser.driver.get(address.replace(*wrong))
        assert same(page.check(), states[0])


def test_walk(show):
    page = show(ConvExplorer(torch.rand(4, 4), top_edge))
    page.change("speed", 30)
    page.click("walk")
    seen = set()
    WebDriverWait(page, 20, 0.02).until(
        lambda page: seen.add((page.state["row"], page.state["col"])) or len(seen) == 4
    )
    page.keys("map", Keys.HOME)
    assert page.js("return $('walk').getAttribute('aria-pressed')") == "false"
    # whoever wants less motion gets a slow walk, and a map that doesn't glide
    quiet = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": quiet})
    page.browser.driver.refresh()
    moves = "return [$('speed').value, getComputedStyle($('map')).transitionDuration]"
    assert page.js(moves) == ["500", "0s"]


@pytest.mark.parametrize("width, height", [(360, 800), (720, 720), (1440, 900)])
def test_image_map_kernel_and_stride_are_in_view_together(show, width, height):
    page = show(ConvExplorer(torch.rand(28, 28), top_edge), width=width)
    rects = "return ['image', 'map', 'weights', 'stride'].map(i => $(i).getBoundingClientRect())"
    boxes = page.js(rects)
    assert max(b["bottom"] for b in boxes) - min(b["top"] for b in boxes) < height - 100
    image, map = boxes[:2]
    assert image["right"] <= map["left"] and map["width"] > 110
    # a stride of 2 halves the map, and padding leaves the pixels as they are
    page.js("$('map').style.transition = 'none'")
    page.js("el.set({ stride: 2, padding: 1 })")
    padded, half = page.js(rects)[:2]
    assert half["width"] / map["width"] == pytest.approx(14 / 26, abs=0.03)
    assert padded["width"] / image["width"] == pytest.approx(30 / 28, abs=0.01)


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("ks", [(3, 3), (7, 7)])
def test_no_overflow(show, browser, width, ks):
    page = show(ConvExplorer(torch.rand(6, 1, 64, 48), torch.randn(ks), padding=9), width=width)
    assert browser.overflow() == 0
    inside = """
        const wide = el.getBoundingClientRect().right + 0.5;
        const out = e => e.getBoundingClientRect().right > wide;
        const seen = [...root.querySelectorAll('.body *')].filter(e => !e.closest('.sr'));
        return seen.filter(out).map(e => e.outerHTML.slice(0, 80));
    """
    assert page.js(inside) == []


def luminance(colour):
    "As WCAG defines it."
    rgb = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(show, scheme):
    page = show(ConvExplorer(torch.rand(4, 1, 9, 9), top_edge), scheme=scheme)
    # every text can be read on what is behind it
    texts = page.js(
        """
        const behind = e => {
          const colour = getComputedStyle(e).backgroundColor;
          return colour === 'rgba(0, 0, 0, 0)' ? behind(e.parentElement) : colour;
        };
        const own = e => [...e.childNodes].map(n => n.nodeType === 3 ? n.data.trim() : '').join('');
        const text = e => e.tagName === 'INPUT' ? e.value : own(e);
        return [...root.querySelectorAll('.body *')]
          .filter(e => !e.closest('.sr') && e.getClientRects().length && text(e))
          .map(e => [text(e), getComputedStyle(e).color, behind(e)]);
        """
    )
    assert len(texts) > 60
    for text, colour, ground in texts:
        low, high = sorted((luminance(colour), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, colour, ground)
    # what the page says goes before the scheme
    for name, value, theme in (
        ("data-none", "", scheme),
        ("data-jp-theme-light", "true", "light"),
        ("data-jp-theme-light", "false", "dark"),
        ("data-vscode-theme-kind", "vscode-dark", "dark"),
        ("data-vscode-theme-kind", "vscode-high-contrast-light", "light"),
        ("data-theme", "dark", "dark"),
    ):
        page.js("document.body.setAttribute(arguments[1], arguments[2])", name, value)
        assert page.js("return root.querySelector('.explorer').dataset.theme") == theme
        page.js("document.body.removeAttribute(arguments[1])", name)


def test_two_on_one_page_and_no_style_gets_in_or_out(show, browser):
    loud = "* { color: red !important; font-size: 40px !important } p, button { display: none !important }"
    two = [ConvExplorer(torch.rand(n, n), k) for n, k in ((9, top_edge), (6, left_edge))]
    page = show(*two, head=f"<style>{loud}</style>")
    page.change("stride", 2)
    page.click("blur")
    assert page.check()["kernel"] != left_edge.tolist()
    other = Page(browser, 1).check()
    assert other["kernel"] == left_edge.tolist() and other["stride"] == 1
    style = "const s = getComputedStyle($('where')); return [s.color, s.fontSize, s.display]"
    assert page.js(style) == ["rgb(83, 92, 105)", "14px", "block"]
    assert browser.run("return getComputedStyle(document.body).color") == "rgb(255, 0, 0)"


def test_put_in_by_a_front_end(show, browser):
    # JupyterLab and VS Code set innerHTML and then make the scripts anew; outputs that are scrolled
    # out of sight are taken out of the page and put back
    page = show(ConvExplorer(torch.rand(9, 9), top_edge))
    browser.run(
        """
        const box = document.createElement('div'), code = document.querySelector('script').textContent;
        const el = document.querySelector('[data-explorer]').outerHTML;
        document.body.replaceChildren(box);
        box.innerHTML = el;
        const script = document.createElement('script');
        script.textContent = code;
        box.append(script);
        script.remove();
        """
    )
    page.change("stride", 3)
    page.js("const box = el.parentNode; el.remove(); box.append(el)")
    assert page.check()["stride"] == 3
    assert page.js("return $('map').width") > 0


def test_keys_are_no_shortcuts_of_the_notebook(show, browser):
    page = show(ConvExplorer(torch.rand(9, 9), top_edge))
    browser.run("window.got = []; document.addEventListener('keydown', e => got.push(e.key))")
    page.keys("map", Keys.ARROW_DOWN, "d", Keys.TAB)
    page.keys("stride", "1")
    assert browser.run("return got") == ["Tab"]
    assert page.js("return el.dataset.lmSuppressShortcuts") == "true"


def test_names_for_screen_readers(show, browser):
    page = show(ConvExplorer(torch.rand(2, 1, 9, 9), top_edge, titles=["one", "two"]))
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    kinds = {"button", "spinbutton", "application", "image", "img"}
    shown = [n for n in nodes if not n.get("ignored") and "role" in n]
    named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in shown]
    named = [(role, name) for role, name in named if role in kinds]
    assert len(named) > 20 and all(name for _, name in named), named
    assert ("spinbutton", "kernel, row 0, column 2") in named
    assert any(role == "application" and "Feature map of 7 rows" in name for role, name in named)
    assert page.js("return $('live').getAttribute('aria-live')") == "polite"
