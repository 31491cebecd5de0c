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

from slowconv import ConvExplorer, left_edge, out_size, top_edge
from slowconv.explore import all_panels, usual_kernels


def conv2d(image, kernel, **settings):
    "The map as torch has it, in double precision."
    x, w = torch.as_tensor(image).double(), torch.as_tensor(kernel).double()
    return F.conv2d(x[None, None], w[None, None], **settings)[0, 0]


def embedded(explorer):
    "What an explorer hands to its page."
    return json.loads(
        html.unescape(re.search('data-explorer="(.*?)"', explorer._repr_html_()).group(1))
    )


def decoded(im):
    if "u8" in im:
        a = np.frombuffer(base64.b64decode(im["u8"]), np.uint8).astype(np.float32) / np.float32(255)
    else:
        a = np.frombuffer(base64.b64decode(im["f32"]), "<f4")
    return torch.tensor(a).reshape(im["h"], im["w"])


# ---------------------------------------------------------------- what goes in

ramp = torch.arange(20.0).reshape(4, 5) / 19


@pytest.mark.parametrize(
    "image",
    [
        ramp,
        ramp[None],
        ramp.double(),
        ramp.numpy(),
        ramp.clone().requires_grad_(),
        ramp.T.contiguous().T,
        [ramp],
        ramp[None, None],
    ],
    ids=["HW", "1HW", "float64", "numpy", "grad", "strided", "list", "11HW"],
)
def test_one_image_in_many_forms(image):
    explorer = ConvExplorer(image, torch.ones(2, 2))
    assert len(explorer.images) == 1
    assert torch.equal(decoded(embedded(explorer)["images"][0]), ramp)


def test_bytes_and_pil_become_0_to_1():
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    for image in (levels, Image.fromarray(levels.numpy())):
        im = embedded(ConvExplorer(image, top_edge))["images"][0]
        assert "u8" in im
        assert torch.equal(decoded(im), levels / 255)


def test_several_images():
    batch = torch.rand(5, 8, 9)
    for images in (batch, batch[:, None], list(batch), batch.numpy()):
        assert torch.equal(torch.stack(ConvExplorer(images, top_edge).images), batch)
    assert len(ConvExplorer([torch.rand(8, 8), torch.rand(5, 9)], top_edge).images) == 2
    assert len(ConvExplorer(torch.rand(3, 1, 8, 8), top_edge).images) == 3


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"image": torch.rand(3, 8, 8)}, r"shape \[3, 8, 8\] is an image with colours"),
        ({"image": torch.rand(8, 8, 3)}, r"shape \[8, 8, 3\] is an image with colours"),
        ({"image": [torch.rand(3, 8, 8)]}, r"shape \[3, 8, 8\] is an image with colours"),
        ({"image": Image.new("RGB", (8, 8))}, r"convert\('L'\)"),
        ({"image": torch.rand(8)}, r"shape \[8\]"),
        ({"image": torch.rand(65, 8)}, "65x8"),
        ({"image": torch.rand(0, 8)}, "0x8"),
        ({"image": torch.full((8, 8), torch.nan)}, "holds nan"),
        ({"image": []}, "0 images"),
        ({"image": torch.rand(25, 8, 8)}, "25 images"),
        ({"kernel": torch.rand(8, 3)}, r"kernel has shape \[8, 3\]"),
        ({"kernel": torch.rand(4, 1, 3, 3)}, r"kernel has shape \[4, 1, 3, 3\]"),
        ({"kernel": torch.rand(3)}, r"kernel has shape \[3\]"),
        ({"kernel": torch.tensor([[torch.inf]])}, "holds inf"),
        ({"kernels": {"odd": torch.rand(9, 9)}}, r"kernels\['odd'\] has shape \[9, 9\]"),
        ({"stride": 0}, "stride=0"),
        ({"stride": 1.5}, "stride=1.5"),
        ({"stride": (1, 2)}, r"stride=\(1, 2\)"),
        ({"padding": -1}, "padding=-1"),
        ({"padding": "same"}, "padding='same'"),
        ({"dilation": 10}, "dilation=10"),
        ({"dilation": 4}, "reaches over 9 pixels, the image with its padding has 8"),
        ({"titles": ["a", "b"]}, "2 titles for 1 images"),
        ({"panels": ["bias"]}, "panel 'bias'; there are kernels, products, stride"),
        ({"at": (6, 0)}, r"at=\(6, 0\); the map has 6 rows and 6 columns"),
        ({"at": (0, -1)}, r"at=\(0, -1\)"),
    ],
)
def test_what_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ConvExplorer(**{"image": torch.rand(8, 8), "kernel": top_edge, **kwargs})


def test_the_kernels_to_choose_from():
    explorer = ConvExplorer(
        ramp, torch.ones(2, 2), kernels={"mine": torch.rand(1, 1, 3, 3), "blur": left_edge}
    )
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
    assert ConvExplorer(image, torch.ones(1, 1)).at == (2, 4)
    assert ConvExplorer(-image, torch.ones(1, 1)).at == (2, 4)
    assert ConvExplorer(image**2, torch.ones(1, 1)).at == (4, 1)
    assert ConvExplorer(image * 0, torch.ones(1, 1)).at == (0, 0)
    explorer = ConvExplorer(image, torch.ones(1, 1), stride=2, at=(2, 0))
    assert (embedded(explorer)["row"], embedded(explorer)["col"]) == (2, 0)


def framed(png, left):
    "Top, bottom, left and right of what is orange in the left or the right half of a still picture."
    a = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    r, g, b = np.moveaxis(a, 2, 0)
    orange = (r > 200) & (abs(g - 127) < 40) & (b < 60)
    middle = a.shape[1] // 2
    ys, xs = orange[:, :middle].nonzero() if left else orange[:, middle:].nonzero()
    return ys.min(), ys.max(), xs.min(), xs.max()


def test_the_still_picture_frames_the_window_and_its_answer():
    image = torch.zeros(8, 8)
    image[5, 6] = 1
    png, said = ConvExplorer(image, torch.ones(3, 3), at=(0, 0))._repr_png_()
    assert said["alt"] == (
        "A convolution: an image of 8 by 8 pixels, a kernel of 3 by 3 numbers, and their feature "
        "map of 6 by 6. The framed window's answer is 0.00."
    )
    other, said = ConvExplorer(image, torch.ones(3, 3), at=(3, 4))._repr_png_()
    assert "answer is 1.00." in said["alt"]
    for left, (down, right), cells in ((True, (3, 4), 3), (False, (3, 4), 1)):
        y0, y1, x0, _ = framed(png, left)
        cell = (y1 - y0) / cells
        y, _, x, _ = framed(other, left)
        assert (y - y0) / cell == pytest.approx(down, abs=0.35)
        assert (x - x0) / cell == pytest.approx(right, abs=0.5)


def test_where_no_script_runs_the_same_picture_stands():
    explorer = ConvExplorer(ramp, torch.ones(2, 2))
    png, said = explorer._repr_png_()
    alt, src = re.search(
        r'<img [^>]*alt="(.*?)" src="data:image/png;base64,(.*?)">', explorer._repr_html_()
    ).groups()
    assert alt == said["alt"] and base64.b64decode(src) == png


def test_the_html_is_small_the_same_each_time_and_needs_nothing():
    images = (torch.rand(6, 28, 28) * 255).round() / 255
    pages = [ConvExplorer(images, top_edge)._repr_html_() for _ in range(2)]
    assert pages[0] == pages[1]
    still = re.search('data:image/png;base64,[^"]*', pages[0])[0]
    assert len(still) < 16_000 and len(pages[0]) - len(still) < 60_000
    outside = r"https?:|\bimport\(|\bfetch\(|\bsrc=|\bhref=|@import|url\("
    assert not re.search(outside, pages[0].replace(f'src="{still}"', ""))
    assert "ConvExplorer(images: 6 of 28x28, kernel: 3x3" in repr(ConvExplorer(images, top_edge))


def test_titles_are_text():
    title = "</script><b>\"'&"
    page = ConvExplorer(ramp, torch.ones(2, 2), titles=[title], kernels={title: torch.ones(1, 1)})
    assert title not in page._repr_html_()
    assert embedded(page)["images"][0]["title"] == title


# ---------------------------------------------------------------- in a browser


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

    def change_weight(self, value):
        "As if it had been typed into the kernel's first number."
        self.js(
            "const input = root.querySelector('#weights input'); input.focus(); input.value = arguments[1];"
            "input.dispatchEvent(new Event('input', {bubbles: true}));",
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
        from selenium.webdriver.common.action_chains import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput

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
        expected = conv2d(
            s["image"], s["kernel"], **{k: s[k] for k in ("stride", "padding", "dilation")}
        )
        torch.testing.assert_close(torch.tensor(s["map"]).double(), expected, rtol=1e-6, atol=1e-6)
        assert abs(sum(s["products"]) - expected[s["row"], s["col"]]) < 1e-6
        return s


@pytest.fixture
def show(browser, tmp_path):
    "show(*explorers, width=..., scheme=...): the first explorer of a page with all of them."

    def show(*explorers, head="", body="", **kwargs):
        path = tmp_path / "page.html"
        pages = "\n".join(e._repr_html_() for e in explorers)
        path.write_text(
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>explorer</title>'
            f'<meta name="viewport" content="width=device-width">{head}<body {body}>{pages}',
            encoding="utf-8",
        )
        browser.open(path.as_uri(), **kwargs)
        return Page(browser)

    yield show
    assert browser.errors() == []


def settings(n):
    "n settings whose map is not empty: sizes of image and kernel, numbers, stride, padding, dilation."
    g = torch.Generator().manual_seed(0)
    choose = lambda low, high: torch.randint(low, high + 1, (), generator=g).item()  # noqa: E731
    out = []
    while len(out) < n:
        shape, ks = (choose(1, 40), choose(1, 40)), (choose(1, 7), choose(1, 7))
        s = {"stride": choose(1, 5), "padding": choose(0, 4), "dilation": choose(1, 4)}
        if all(out_size(m, k, *s.values()) for m, k in zip(shape, ks, strict=True)):
            image, kernel = (
                torch.randn(size, generator=g) * 10 ** choose(-2, 2) for size in (shape, ks)
            )
            out.append({"image": image.tolist(), "kernel": kernel.tolist(), **s})
    return out


def test_the_map_is_that_of_conv2d_on_240_settings(show):
    page = show(ConvExplorer(ramp, torch.ones(1, 1)))
    cases = settings(240)
    each = "c => { el.set(c); return [el.state.map, el.state.unread] }"
    shown = page.js(f"return arguments[1].map({each})", cases)
    seen = set()
    for case, (got, unread) in zip(cases, shown, strict=True):
        image, kernel = (torch.tensor(case.pop(name)).double() for name in ("image", "kernel"))
        expected = conv2d(image, kernel, **case)
        atol = 1e-6 * expected.abs().max().item()
        torch.testing.assert_close(torch.tensor(got).double(), expected, rtol=1e-5, atol=atol)
        # a pixel that is never read has no gradient
        x = torch.zeros_like(image, requires_grad=True)
        conv2d(x, torch.ones_like(kernel), **case).sum().backward()
        zero = x.grad == 0
        assert unread["rows"] == zero.all(1).nonzero().flatten().tolist()
        assert unread["cols"] == zero.all(0).nonzero().flatten().tolist()
        seen.add((image.shape, kernel.shape, *case.values()))
    assert len(seen) > 200


def test_embedded_numbers_are_exact_enough(show):
    g = torch.Generator().manual_seed(1)
    for image in (
        torch.randn(12, 9, generator=g) * 100,
        torch.rand(28, 28, generator=g),
        torch.arange(16).reshape(4, 4),
        torch.randint(256, (9, 9), generator=g, dtype=torch.uint8) / 255,
    ):
        kernel = torch.randn(3, 3, generator=g)
        page = show(ConvExplorer(image, kernel, padding=1))
        expected = conv2d(image, kernel, padding=1)
        got = torch.tensor(page.state["map"]).double()
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_controls_set_the_map(show):
    page = show(ConvExplorer(torch.rand(13, 11), top_edge))
    for name, value in (("stride", 2), ("padding", 3), ("dilation", 2), ("stride", 4)):
        page.change(name, value)
        assert page.check()[name] == value
    size = page.state["size"]
    assert size == [out_size(13, 3, 4, 3, 2), out_size(11, 3, 4, 3, 2)]
    formula = page.js("return $('formula').textContent")
    assert f"13 + 2·3 − 2·(3 − 1) − 14 + 1= {(13 + 6 - 4 - 1) / 4:g} + 1= {size[0]}" in formula
    assert f"The map is {size[0]} by {size[1]} now. Row" in page.state["text"]
    # out of range, and nothing at all
    page.change("stride", 99)
    assert page.state["stride"] == 9
    page.change("stride", "")
    assert page.js("return $('stride').value") == "9"
    page.js("$('stride').parentNode.querySelector('button').click()")
    assert page.check()["stride"] == 8


@pytest.mark.parametrize(
    "panels",
    [
        (),
        ("products",),
        ("products", "stride", "padding"),
        ("matrix",),
        ("dilation",),
        ("kernels", "stride"),
    ],
)
def test_only_the_named_panels_are_seen(show, browser, panels):
    parts = {"kernels": "kernels", "products": "number", "matrix": "unrolled"}
    parts |= {name: name for name in ("stride", "padding", "dilation")}
    for width in (1000, 400):
        page = show(ConvExplorer(torch.rand(9, 9), top_edge, panels=panels, at=(0, 0)), width=width)
        seen = {
            p
            for p in all_panels
            if page.js("return !!$(arguments[1]).getClientRects().length", parts[p])
        }
        assert seen == set(panels)
        assert browser.overflow() == 0
        # the formula speaks of what can be set, and the next windows of the stride
        formula = page.js(
            "return $('formula').getClientRects().length ? $('formula').textContent : ''"
        )
        assert bool(formula) == bool({"stride", "padding", "dilation"} & set(panels))
        assert ("d(k" in formula) == ("dilation" in panels)
        assert page.js("return !$('next').hidden") == ("stride" in panels)
        page.keys("map", "\ue015")  # arrow down
        assert page.check()["row"] == 1


def test_the_map_is_drawn_in_the_image_s_scale(show):
    page = show(ConvExplorer(torch.rand(9, 9), top_edge))
    for stride, padding in ((1, 0), (2, 1), (3, 0)):
        page.change("stride", stride)
        page.change("padding", padding)
        image, map = page.js("return [$('image').width, $('map').width]")
        assert map / page.state["size"][1] == pytest.approx(image / (9 + 2 * padding), abs=1)


def test_large_numbers_do_not_become_others(show):
    page = show(ConvExplorer(torch.ones(3, 3), torch.ones(1, 1)))
    page.change_weight(1e9)
    assert page.check()["kernel"] == [[1e6]]
    page.js("root.querySelector('#weights input').blur()")
    assert page.js("return root.querySelector('#weights input').value") == "1.0e+6"
    assert page.js("return $('sum').textContent") == "1.0e6"


def test_without_scripts_there_is_a_picture(show, browser):
    off = browser.driver.execute_cdp_cmd
    off("Emulation.setScriptExecutionDisabled", {"value": True})
    show(ConvExplorer(torch.rand(9, 9), top_edge), width=600)
    off("Emulation.setScriptExecutionDisabled", {"value": False})
    assert (
        browser.run(
            "return customElements.get(document.querySelector('[data-explorer]').localName)"
        )
        is None
    )
    box = browser.run(
        "const i = document.querySelector('img'); return [i.naturalWidth, i.width, i.alt]"
    )
    assert box[0] == 760 and 500 < box[1] <= 600 and "feature map of 7 by 7" in box[2]
    assert browser.overflow() == 0
    show(ConvExplorer(torch.rand(9, 9), top_edge))
    assert browser.run("return document.querySelector('img').getClientRects().length") == 0


def test_what_is_never_read_is_said(show):
    page = show(ConvExplorer(torch.rand(8, 8), top_edge, stride=2))
    assert page.state["unread"] == {"rows": [7], "cols": [7]}
    assert "never read: row 7 and column 7" in page.js("return $('unread').textContent")
    page.change("padding", 1)
    assert "every row and every column is read" in page.js("return $('unread').textContent")


def test_no_window_fits(show):
    page = show(ConvExplorer(torch.rand(5, 5), top_edge))
    page.change("dilation", 3)
    assert page.state["size"] == [0, 0]
    assert "it reaches over 7 × 7 pixels, the image has 5 × 5" in page.state["text"]
    page.js(
        "$('map').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowDown', bubbles: true}))"
    )
    assert page.state["row"] == 0
    page.change("padding", 1)
    assert page.check()["size"] == [1, 1]


def test_keyboard(show):
    from selenium.webdriver import Keys

    image = torch.rand(9, 9)
    page = show(ConvExplorer(image, top_edge))
    expected = conv2d(image, top_edge)
    for keys, at in (
        ((Keys.HOME, Keys.PAGE_UP), (0, 0)),
        ((Keys.ARROW_DOWN,), (1, 0)),
        ((Keys.ARROW_RIGHT, Keys.ARROW_RIGHT), (1, 2)),
        ((Keys.ARROW_UP, Keys.ARROW_UP), (0, 2)),
        ((Keys.END, Keys.PAGE_DOWN, Keys.ARROW_LEFT), (6, 5)),
    ):
        page.keys("map", *keys)
        state = page.check()
        assert (state["row"], state["col"]) == at
        said = re.fullmatch(
            r"Row (\d), column (\d) of the feature map\. "
            r"Window: rows (\d) to (\d), columns (\d) to (\d) of the image\. "
            r"Products: (.*)\. Sum: (.*)\.",
            state["text"].replace("−", "-"),
        )
        r, c = at
        assert [int(v) for v in said.groups()[:6]] == [r, c, r, r + 2, c, c + 2]
        products = [float(v) for v in re.split("[,;] ", said[7])]
        window = image[r : r + 3, c : c + 3] * top_edge
        assert products == pytest.approx(window.flatten().tolist(), abs=0.0051)
        assert float(said[8]) == pytest.approx(expected[r, c].item(), abs=0.0051)
        assert page.js("return $('sum').textContent").replace("−", "-") == said[8]
        assert f"column {r * 7 + c} of 49" == page.js("return $('column').textContent")


def test_pointer_and_touch(show):
    page = show(ConvExplorer(torch.rand(9, 9), top_edge))
    for kind, element, at, expected in (
        ("mouse", "map", (0.5 / 7, 6.5 / 7), (6, 0)),
        ("touch", "map", (3.5 / 7, 2.5 / 7), (2, 3)),
        ("mouse", "image", (5.5 / 9, 4.5 / 9), (3, 4)),
        ("touch", "image", (0.01, 0.01), (0, 0)),
        ("mouse", "all", (10.5 / 49, 0.5), (1, 3)),
    ):
        page.drag(element, at, kind=kind)
        state = page.check()
        assert (state["row"], state["col"]) == expected


def test_a_kernel_value_is_edited(show):
    from selenium.webdriver import Keys

    page = show(ConvExplorer(torch.rand(9, 9), top_edge))
    cell = "root.querySelectorAll('#weights input')[5]"
    page.js(f"return {cell}").send_keys("-2.5")
    state = page.check()
    assert state["kernel"] == [[-1, -1, -1], [0, 0, -2.5], [1, 1, 1]]
    page.js(f"return {cell}").send_keys(Keys.ARROW_UP)
    assert page.check()["kernel"][1][2] == -2.4
    # while there is no number yet, the last one stays
    page.js(f"{cell}.value = ''; {cell}.dispatchEvent(new Event('input'))")
    assert page.check()["kernel"][1][2] == -2.4
    page.js(f"{cell}.blur()")
    assert page.js(f"return {cell}.value") == "-2.4"


def test_another_kernel_and_another_image(show):
    images = torch.rand(2, 1, 8, 8)
    page = show(
        ConvExplorer(images, top_edge, titles=["one", "two"], kernels={"wide": torch.rand(5, 7)})
    )
    page.click("emboss")
    assert page.check()["kernel"] == usual_kernels["emboss"].tolist()
    page.click("wide")
    assert page.check()["size"] == [4, 2]
    page.click("two")
    torch.testing.assert_close(torch.tensor(page.check()["image"]), images[1, 0])
    pressed = (
        "return [...root.querySelectorAll('[aria-pressed=true]')].map(b => b.textContent.trim())"
    )
    assert page.js(pressed) == ["point", "two", "wide"]


def test_drawing(show):
    from selenium.webdriver import Keys

    page = show(ConvExplorer(torch.zeros(8, 8), top_edge))
    page.click("draw")
    page.drag("image", (0.5 / 8, 2.5 / 8), (7.5 / 8, 2.5 / 8))
    state = page.check()
    assert state["image"] == [[float(row == 2)] * 8 for row in range(8)]
    assert max(map(max, state["map"])) == 3
    page.click("erase")
    page.drag("image", (3.5 / 8, 2.5 / 8), kind="touch")
    assert page.check()["image"][2] == [1, 1, 1, 0, 1, 1, 1, 1]
    page.click("draw")
    page.keys("image", Keys.ARROW_DOWN, Keys.ARROW_RIGHT, " ")
    state = page.check()
    assert state["image"][5][5] == 1
    # all of it is as it came
    page.click("blur")
    page.change("stride", 3)
    page.click("reset")
    state = page.check()
    assert not torch.tensor(state["image"]).any()
    assert state["kernel"] == top_edge.tolist() and state["stride"] == 1


def test_walk(show):
    page = show(ConvExplorer(torch.rand(4, 4), top_edge))
    page.js("el.set({row: 0, col: 0})")
    page.click("walk")
    at = page.browser.driver.execute_async_script(
        """
        const el = document.querySelector('[data-explorer]'), seen = new Set();
        const timer = setInterval(() => {
          seen.add(el.state.row * 2 + el.state.col);
          if (seen.size < 4) return;
          clearInterval(timer);
          arguments[0]([...seen]);
        }, 10);
        """
    )
    assert sorted(at) == [0, 1, 2, 3]
    page.keys("map", "\ue011")  # home
    assert page.js("return $('walk').getAttribute('aria-pressed')") == "false"


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("ks", [(3, 3), (7, 7), (1, 7), (2, 2)])
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
    # side by side, or one below the other
    tops = page.js(
        "return ['image', 'weights', 'map'].map(id => Math.round($(id).getBoundingClientRect().top))"
    )
    assert (max(tops) - min(tops) <= 2) if width == 1600 else (tops == sorted(set(tops)))


def luminance(colour):
    "As WCAG defines it."
    rgb = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    "scheme, body, dark",
    [
        ("light", "", False),
        ("dark", "", True),
        ("dark", 'data-jp-theme-light="true"', False),
        ("light", 'data-jp-theme-light="false"', True),
        ("light", 'data-vscode-theme-kind="vscode-dark"', True),
        ("dark", 'data-vscode-theme-kind="vscode-high-contrast-light"', False),
        ("dark", 'data-theme="light"', False),
    ],
)
def test_dark_and_light(show, scheme, body, dark):
    page = show(ConvExplorer(torch.rand(4, 1, 9, 9), top_edge), scheme=scheme, body=body)
    background = page.js("return getComputedStyle(root.querySelector('.explorer')).backgroundColor")
    assert (luminance(background) < 0.1) == dark
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
          .filter(e => !e.closest('.sr, :disabled') && e.getClientRects().length && text(e))
          .map(e => [text(e), getComputedStyle(e).color, behind(e)]);
        """
    )
    assert len(texts) > 60
    for text, colour, ground in texts:
        low, high = sorted((luminance(colour), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, colour, ground)


def test_the_theme_follows_the_page(show):
    page = show(ConvExplorer(ramp, torch.ones(2, 2)))
    theme = "return root.querySelector('.explorer').dataset.theme"
    assert page.js(theme) == "light"
    page.js("document.documentElement.dataset.theme = 'dark'")
    assert page.js(theme) == "dark"


def test_two_on_one_page_and_no_style_gets_in_or_out(show, browser):
    loud = "* { color: red !important; font-size: 40px !important } p, button { display: none !important }"
    loud += " body { letter-spacing: 9px; text-transform: uppercase }"
    explorers = [ConvExplorer(torch.rand(n, n), k) for n, k in ((9, top_edge), (6, left_edge))]
    page = show(*explorers, head=f"<style>{loud}</style>")
    other = Page(browser, 1)
    page.change("stride", 2)
    page.click("blur")
    assert other.check()["kernel"] == left_edge.tolist() and other.state["stride"] == 1
    assert page.check()["kernel"] != left_edge.tolist()
    names = ["color", "fontSize", "display", "letterSpacing", "textTransform"]
    style = page.js(
        "const s = getComputedStyle($('where')); return arguments[1].map(n => s[n])", names
    )
    assert style == ["rgb(83, 92, 105)", "14px", "block", "normal", "none"]
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
    page.keys("map", "\ue015", "d", "d", "\ue004")  # arrow down, d, d, tab
    page.keys("stride", "1")
    assert browser.run("return got") == ["Tab"]
    assert page.js("return el.dataset.lmSuppressShortcuts") == "true"


def test_names_for_screen_readers(show, browser):
    page = show(ConvExplorer(torch.rand(2, 1, 9, 9), top_edge, titles=["one", "two"]))
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    kinds = {"button", "spinbutton", "application", "image", "img"}
    named = [
        (n["role"]["value"], n.get("name", {}).get("value", ""))
        for n in nodes
        if not n.get("ignored") and n.get("role", {}).get("value") in kinds
    ]
    assert len(named) > 20 and all(name for _, name in named), named
    assert ("spinbutton", "kernel, row 0, column 2") in named
    assert any(role == "application" and "Feature map of 7 rows" in name for role, name in named)
    assert page.js("return $('live').getAttribute('aria-live')") == "polite"
    page.keys("map", "\ue013")
    assert page.js("return getComputedStyle($('map')).outlineStyle") == "solid"
