"""Makes nbs/images/explorer.gif, the explorer at work, with Chromium: python docs/explorer_picture.py"""

import io
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from selenium import webdriver

from slowconv import ConvExplorer, fashion_classes, load_images, top_edge

root = Path(__file__).parents[1]
width, scale = 920, 0.76

# what is done, and for how long it is shown, milliseconds
walk = [
    ({"row": row, "col": col}, 450)
    for row, col in ((6, 15), (6, 16), (7, 17), (8, 17), (9, 17), (9, 18))
]
scenes = [
    *walk,
    ({"kernel": "left edges"}, 1300),
    ({"kernel": "upper edges", "row": 18, "col": 12}, 900),
    ({"stride": 2}, 2200),
    ({"padding": 1}, 2200),
]


def shots():
    "A picture of each scene."
    images, labels = load_images("fashion_mnist", "test", "sample")
    explorer = ConvExplorer(
        images[:2, None], top_edge, titles=[fashion_classes[i] for i in labels[:2]]
    )
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", "no-first-run"):
        options.add_argument(f"--{flag}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(
            f'<meta charset="utf-8"><body style="margin: 0">{explorer._repr_html_()}',
            encoding="utf-8",
        )
        size = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.as_uri())
        for changes, _ in scenes:
            driver.execute_script(
                "const el = document.querySelector('[data-explorer]'), c = arguments[0];"
                "const k = el.kernels.find(k => k.title === c.kernel);"
                "el.set(k ? {...c, kernel: k} : c)",
                changes,
            )
            box = driver.find_element("css selector", "[data-explorer]")
            shot = Image.open(io.BytesIO(box.screenshot_as_png)).convert("RGB")
            yield shot.resize([round(scale * n) for n in shot.size], Image.LANCZOS)
    driver.quit()


def palette():
    "Few colours, the same for all pictures: greys, red to blue, the window's yellow, the hatch's violet."
    greys = [(v, v, v) for v in (*range(0, 240, 14), 245, 250, 255)]
    maps = plt.get_cmap("RdBu")(np.linspace(0, 1, 19), bytes=True)[:, :3].tolist()
    others = [(255, 176, 0), (255, 236, 198), (190, 130, 0), (122, 53, 216), (180, 150, 230)]
    colours = [c for colour in (*greys, *maps, *others) for c in colour]
    out = Image.new("P", (1, 1))
    out.putpalette(colours)
    return out


if __name__ == "__main__":
    frames = list(shots())
    height = max(frame.height for frame in frames)
    frames = [frame.crop((0, 0, frame.width, height)) for frame in frames]
    first, *rest = (frame.quantize(palette=palette(), dither=Image.Dither.NONE) for frame in frames)
    path = root / "nbs" / "images" / "explorer.gif"
    durations = [ms for _, ms in scenes]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    print(f"{path.name}: {len(frames)} pictures, {path.stat().st_size:,} bytes")
