"""Prompts that text encoders are recorded and compared with, of the kinds that people write to image and video models.

Tags, sentences, long descriptions, written words, other languages, colours and counts, negative prompts. No word of
HELD_OUT's scenes is in RECORDED: what is measured on them was not fitted to them.
"""

RECORDED = (
    "a photo of a red fox in the snow, golden hour, shallow depth of field",
    "masterpiece, best quality, 1girl, silver hair, school uniform, cherry blossoms, looking at viewer",
    "A weathered lighthouse keeper climbs a spiral staircase with an oil lamp in one hand. Rain beats against the "
    "narrow windows, and the warm light throws long shadows on the whitewashed stone. Shot on 35 mm film, muted "
    "colours, slight grain.",
    'a neon sign that says "OPEN 24 HOURS" above a small diner, wet asphalt, reflections, night',
    "three green apples and two yellow pears on a blue tablecloth, still life, oil on canvas",
    "blurry, low quality, watermark, extra fingers, deformed hands, jpeg artifacts, text, signature",
    "一只穿着宇航服的熊猫站在月球上,背景是地球,电影感,超高清",
    "una calle estrecha de Sevilla al atardecer, macetas con geranios, acuarela",
    "Aerial drone shot over a turquoise lagoon, slow push in, small white boats leave trails in the water",
    "isometric cutaway of a cozy two-storey bakery, tiny people, pastel colours, 3d render, octane",
    "portrait of an elderly Mongolian herder, deep wrinkles, fur hat, rim light, 85mm, f/1.4",
    "minimalist logo of a whale made of a single continuous line, black on white, vector",
    "A woman in a mustard raincoat walks her dachshund past a closed bookshop. The camera follows from behind at knee "
    "height; the dog stops, looks back, and shakes the water off.",
    "cyberpunk samurai, cinematic lighting, highly detailed, trending on artstation, 8k",
    "Replace the background with a sunny beach and keep the person unchanged",
    "a cat",
    "macro photograph of a dewdrop on a spider web, morning light, bokeh",
    "The left half of the picture shows a winter forest, the right half the same forest in summer.",
    "Poster for a jazz festival in 1959, art deco lettering, trumpet player, two-colour screen print",
    "東京の路地裏、雨上がりの夜、提灯の灯り、アニメ風の背景美術",
    "knolling photo of a watchmaker's tools on slate, labels in small capitals",
    "a steam locomotive crosses a stone viaduct in the Scottish highlands, low clouds, heather in bloom",
    "children's book illustration of a hedgehog who bakes bread, gouache, soft edges",
    "Der alte Leuchtturm auf einer Klippe, Sturm, dramatische Wolken, Ölgemälde im Stil der Romantik",
    "food photography, ramen with a soft egg, steam, chopsticks lifting noodles, dark wood",
    "a chessboard seen from above; the white queen is made of glass and the black king of coal",
    "low poly desert canyon, hot air balloons, flat shading, game asset",
    "a translucent jellyfish drifts upward through dark water, bioluminescent, slow motion, particles in the beam of a "
    "diver's torch",
    "architectural rendering of a timber library with a curved roof, people reading, overcast sky",
    'A hand-drawn map with the title "Kingdom of Ash", mountains in ink, compass rose in the lower right corner',
    "fashion editorial, model in a sculptural paper dress, plain grey studio, hard flash",
    "an astronaut riding a horse, in the style of a medieval tapestry",
    "Une petite fille souffle sur un pissenlit, contre-jour, pellicule argentique",
    "pixel art inventory icons: sword, potion, key, scroll, transparent background",
    "x-ray image of a pocket watch, blueprint annotations, cyan on navy",
    "crowded night market in Taipei, signs in traditional Chinese, handheld camera, motion blur",
    "The robot puts the blue cube on top of the red cube, then waves at the camera.",
    "charcoal sketch of a dancer mid-leap, loose lines, smudged shadows, cream paper",
    "Красная площадь зимой, снегопад, тёплый свет фонарей, фотография",
    "a bowl of porcelain fish scales, iridescent, product shot, infinite white background",
)

HELD_OUT = (
    "an orange tractor beside a stone barn, fog over stubble fields, early autumn",
    'a chalkboard with the words "Soup of the day: pumpkin" in front of a café, overcast',
    "A violinist plays on an empty subway platform while a train rushes past; the wind lifts sheet music from the "
    "floor and the camera circles once around her.",
    "1boy, pirate, parrot on shoulder, wooden ship deck, sunset, anime screencap, dynamic pose",
    "五彩斑斓的孔雀站在古老的石桥上,水墨画风格",
    "studio portrait of twin sisters in matching velvet suits, one laughs, the other looks away",
    "ugly, oversaturated, cropped, out of frame, mutated, duplicate",
    "a glacier calves into the sea, time-lapse, wide angle",
)


def split_prompts(text: str) -> tuple[str, ...]:
    """A user's own prompts, one a line; RECORDED where there are none."""
    return tuple(line.strip() for line in text.splitlines() if line.strip()) or RECORDED
