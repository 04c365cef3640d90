"""Facts of the demo model's corpus, and the phrasings in which they are asked: data, by category.

Nothing is downloaded or copied: every sentence was written here. Seasons are those of the northern hemisphere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

Slots = dict[str, str]


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of question: `facts` fill the slots of each phrasing and of `answer`."""

    name: str
    facts: tuple[Slots, ...]
    answer: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    weight: float = 1.0


def _an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _table(names: str, rows: str) -> tuple[Slots, ...]:
    """Return facts from `a|b; c|d`, with fields named by `names`, each also with its article as `a_<name>`."""
    facts = []
    for row in rows.split(";"):
        values = dict(zip(names.split(), (" ".join(field.split()) for field in row.split("|")), strict=True))
        facts.append(values | {f"a_{name}": _an(value) for name, value in values.items()})
    return tuple(facts)


def _both_ways(facts: tuple[Slots, ...]) -> tuple[Slots, ...]:
    return facts + tuple({"x": fact["y"], "y": fact["x"]} for fact in facts)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _capitals() -> Iterator[Category]:
    facts = _table(
        "x y",
        """France|Paris; Germany|Berlin; Italy|Rome; Spain|Madrid; Portugal|Lisbon; England|London;
        Ireland|Dublin; Austria|Vienna; Greece|Athens; Poland|Warsaw; Russia|Moscow; Norway|Oslo; Sweden|Stockholm;
        Denmark|Copenhagen; Finland|Helsinki; Hungary|Budapest; Belgium|Brussels; Turkey|Ankara; Egypt|Cairo;
        Kenya|Nairobi; Morocco|Rabat; Ghana|Accra; Japan|Tokyo; China|Beijing; India|New Delhi; Thailand|Bangkok;
        Vietnam|Hanoi; Iran|Tehran; Iraq|Baghdad; Nepal|Kathmandu; Cuba|Havana; Canada|Ottawa; Peru|Lima;
        Chile|Santiago; Argentina|Buenos Aires; Colombia|Bogota; Mexico|Mexico City; Australia|Canberra;
        Iceland|Reykjavik; Ukraine|Kyiv; Romania|Bucharest; Bulgaria|Sofia; Serbia|Belgrade; Croatia|Zagreb;
        Cyprus|Nicosia""",
    )
    yield Category(
        "capital",
        facts,
        "{y} is the capital of {x}.",
        _lines("""
        What is the capital of {x}?
        What is the capital city of {x}?
        Which city is the capital of {x}?
        Tell me the capital of {x}.
        Tell me about the capital of {x}.
        Please name the capital of {x}.
        Please tell me the capital city of {x}.
        Name the capital city of {x}.
        What city is the capital of {x}?
        Do you know the capital of {x}?
        Can you tell me about the capital city of {x}?
        What is {x}'s capital?
        Which city is {x}'s capital?
        The capital of {x} is which city?
        I would like to know the capital of {x}.
        """),
        _lines("""
        Please tell me about the capital of {x}.
        Can you name the capital of {x}?
        What is the name of the capital of {x}?
        """),
    )
    yield Category(
        "country",
        facts,
        "{x} is the country with the capital {y}.",
        _lines("""
        {y} is the capital of which country?
        Which country has {y} as its capital?
        What country has {y} as its capital city?
        Which country's capital is {y}?
        Name the country with the capital {y}.
        Tell me which country has the capital {y}.
        Of which country is {y} the capital?
        {y} is the capital city of what country?
        What country is {y} the capital of?
        Please name the country that has {y} as its capital.
        Do you know which country has {y} as its capital?
        I would like to know which country {y} is the capital of.
        """),
        _lines("""
        Which country is {y} the capital of?
        Tell me the country that has {y} as its capital city.
        {y} is the capital of what country?
        """),
    )


def _words() -> Iterator[Category]:
    opposites = _table(
        "x y",
        """hot|cold; big|small; tall|short; fast|slow; happy|sad; light|dark; day|night; up|down;
        in|out; open|closed; rich|poor; young|old; hard|soft; wet|dry; full|empty; loud|quiet; clean|dirty; good|bad;
        left|right; early|late; near|far; high|low; strong|weak; thick|thin; wide|narrow; deep|shallow; sweet|sour;
        true|false; black|white; easy|difficult; sharp|blunt; smooth|rough; brave|afraid; first|last; always|never;
        begin|end; push|pull; buy|sell; win|lose; love|hate; laugh|cry; north|south; east|west; inside|outside;
        asleep|awake; alive|dead; question|answer; friend|enemy; summer|winter; more|less;
        cheap|expensive; safe|dangerous; polite|rude; above|below; before|after; float|sink; forget|remember""",
    )
    yield Category(
        "opposite",
        _both_ways(opposites),
        "{y} is the opposite of {x}.",
        _lines("""
        What is the opposite of {x}?
        What is the opposite word of {x}?
        Tell me the opposite of {x}.
        Which word is the opposite of {x}?
        Name the opposite of {x}.
        Please give me the opposite of {x}.
        What word means the opposite of {x}?
        Give the opposite of the word {x}.
        The opposite of {x} is what?
        Do you know the opposite of {x}?
        Find the opposite of {x}.
        What word is opposite to {x}?
        I need the opposite of {x}.
        """),
        _lines("""
        Please tell me the opposite of {x}.
        Can you name the opposite of the word {x}?
        Which word means the opposite of {x}?
        """),
        1.6,
    )
    plurals = _table(
        "x y",
        """mouse|mice; child|children; man|men; woman|women; foot|feet; tooth|teeth; goose|geese;
        ox|oxen; sheep|sheep; fish|fish; leaf|leaves; knife|knives; wolf|wolves; life|lives; loaf|loaves; half|halves;
        baby|babies; city|cities; lady|ladies; story|stories; berry|berries; party|parties; box|boxes; fox|foxes;
        bus|buses; glass|glasses; church|churches; dish|dishes; wish|wishes; potato|potatoes; tomato|tomatoes;
        hero|heroes; cat|cats; dog|dogs; book|books; tree|trees; house|houses; car|cars; toy|toys; key|keys;
        day|days; boy|boys; girl|girls; apple|apples; bird|birds; horse|horses; shelf|shelves; thief|thieves;
        person|people; deer|deer""",
    )
    yield Category(
        "plural",
        plurals,
        "{y} is the plural of {x}.",
        _lines("""
        What is the plural of {x}?
        What is the plural form of {x}?
        Tell me the plural of {x}.
        Give me the plural of the word {x}.
        Name the plural of {x}.
        One {x}, two what?
        What do you call more than one {x}?
        What is the word for many of {x}?
        Please give the plural of {x}.
        How do you say {x} in the plural?
        I have one {x}. What is the word for two of them?
        Do you know the plural of {x}?
        The plural of {x} is what?
        """),
        _lines("""
        Please tell me the plural form of {x}.
        Can you give me the plural of {x}?
        Which word is the plural of {x}?
        """),
    )
    past = _table(
        "x y",
        """go|went; see|saw; eat|ate; run|ran; come|came; take|took; give|gave; make|made; know|knew;
        think|thought; buy|bought; bring|brought; teach|taught; catch|caught; find|found; sing|sang; swim|swam;
        drink|drank; begin|began; ring|rang; write|wrote; ride|rode; drive|drove; speak|spoke; break|broke; sleep|slept;
        keep|kept; feel|felt; leave|left; lose|lost; meet|met; sit|sat; stand|stood; win|won; fly|flew; grow|grew;
        draw|drew; throw|threw; fall|fell; hold|held; tell|told; sell|sold; build|built; send|sent; play|played;
        walk|walked; jump|jumped; look|looked; help|helped; call|called; cut|cut; put|put""",
    )
    yield Category(
        "past",
        past,
        "{y} is the past tense of {x}.",
        _lines("""
        What is the past tense of {x}?
        What is the past form of {x}?
        Tell me the past tense of {x}.
        Give me the past tense of the word {x}.
        Name the past tense of {x}.
        Today I {x}. What did I do yesterday?
        Please give the past tense of {x}.
        How do you say {x} in the past tense?
        Today we {x}, and yesterday we what?
        Do you know the past tense of {x}?
        The past tense of {x} is what?
        What is {x} in the past tense?
        """),
        _lines("""
        Please tell me the past form of {x}.
        Can you give me the past tense of {x}?
        Which word is the past tense of {x}?
        """),
    )


def _arithmetic() -> Iterator[Category]:
    sums = tuple({"x": str(a), "y": str(b), "z": str(a + b)} for a in range(21) for b in range(21))
    differences = tuple({"x": str(a), "y": str(b), "z": str(a - b)} for a in range(21) for b in range(a + 1))
    yield Category(
        "addition",
        sums,
        "{z} is {x} plus {y}.",
        _lines("""
        What is {x} plus {y}?
        What is {x} + {y}?
        How much is {x} plus {y}?
        How much is {x} + {y}?
        Add {x} and {y}.
        {x} plus {y} is what?
        What do you get when you add {x} and {y}?
        What is the sum of {x} and {y}?
        Tell me the sum of {x} and {y}.
        Please add {x} and {y}.
        Can you add {x} and {y}?
        I have {x} apples and get {y} more. How many apples do I have?
        {x} + {y} = ?
        """),
        _lines("""
        Please tell me the sum of {x} and {y}.
        How much do you get when you add {x} and {y}?
        Tell me, what is {x} plus {y}?
        """),
        1.6,
    )
    yield Category(
        "subtraction",
        differences,
        "{z} is {x} minus {y}.",
        _lines("""
        What is {x} minus {y}?
        What is {x} - {y}?
        How much is {x} minus {y}?
        How much is {x} - {y}?
        Take {y} away from {x}.
        {x} minus {y} is what?
        What do you get when you take {y} from {x}?
        What is left when you take {y} away from {x}?
        Tell me what {x} minus {y} is.
        Please take {y} from {x}.
        Can you take {y} away from {x}?
        I have {x} apples and give {y} away. How many apples do I have?
        {x} - {y} = ?
        """),
        _lines("""
        Please take {y} away from {x}.
        How much do you get when you take {y} from {x}?
        Tell me, what is {x} minus {y}?
        """),
        1.4,
    )


def _comparisons(name: str, things: str, more: str, less: str, odd: str, weight: float) -> Category:
    """Return all pairs of `things` (in ascending order), in both orders and under both relations."""
    order = [thing.strip() for thing in things.split(",")]
    facts = []
    for i, low in enumerate(order):
        for high in order[i + 1 :]:
            for first, second in ((low, high), (high, low)):
                facts.append({"p": first, "q": second, "r": more, "w": high, "l": low})
                facts.append({"p": first, "q": second, "r": less, "w": low, "l": high})
    return Category(
        name,
        tuple(facts),
        "{w} is {r} than {l}.",
        _lines("""
        Which is {r}, {p} or {q}?
        What is {r}, {p} or {q}?
        Which one is {r}, {p} or {q}?
        Tell me which is {r}, {p} or {q}.
        Is {p} {r} or is {q}?
        Is {p} or {q} {r}?
        Of {p} and {q}, which is {r}?
        Which of the two is {r}: {p} or {q}?
        Take {p} and {q}. Which is {r}?
        Do you know what is {r}, {p} or {q}?
        Look at {p} and {q}. Which one is {r}?
        {p} or {q}: which is {r}?
        """),
        _lines(f"""
        {odd} is {{r}}, {{p}} or {{q}}?
        Please tell me which one is {{r}}, {{p}} or {{q}}.
        Of {{p}} and {{q}}, which one is {{r}}?
        """),
        weight,
    )


def _nature() -> Iterator[Category]:
    yield _comparisons(
        "size",
        "an ant, a bee, a mouse, a rabbit, a sheep, a horse, an elephant, a whale, a castle, "
        "a mountain, the moon, the earth, the sun",
        "bigger",
        "smaller",
        "Where",
        1.8,
    )
    yield _comparisons(
        "speed",
        "a snail, a turtle, a duck, a dog, a horse, a car, a train, a plane, a rocket",
        "faster",
        "slower",
        "Who",
        1.4,
    )
    seasons = _table(
        "q s y",
        """is the day longest|the day is longest|summer; is the night longest|the night is
        longest|winter; is the day shortest|the day is shortest|winter; is the night shortest|the night is
        shortest|summer; do the leaves fall|the leaves fall|autumn; does the snow fall|the snow falls|winter;
        do the flowers open|the flowers open|spring; is it hottest|it is hottest|summer; is it coldest|it is
        coldest|winter; do people swim in the sea|people swim in the sea|summer; do people ski|people ski|winter;
        do the birds build nests|the birds build nests|spring; do the birds fly south|the birds fly south|autumn;
        do the lakes freeze|the lakes freeze|winter; are pumpkins ripe|pumpkins are ripe|autumn; are apples
        ripe|apples are ripe|autumn; are strawberries ripe|strawberries are ripe|summer; are lambs born|lambs are
        born|spring; does the snow melt|the snow melts|spring; do the trees turn green|the trees turn green|spring;
        do the trees turn red|the trees turn red|autumn; do bears sleep|bears sleep|winter; do bears wake up|bears
        wake up|spring; do farmers sow|farmers sow|spring; do farmers harvest grapes|farmers harvest grapes|autumn;
        do people wear warm coats|people wear warm coats|winter; do people build snowmen|people build snowmen|winter;
        do people eat ice cream|people eat ice cream|summer""",
    )
    yield Category(
        "season",
        seasons,
        "{y} is when {s}.",
        _lines("""
        When {q}?
        In which season {q}?
        In what season {q}?
        During which season {q}?
        Which season is it when {s}?
        What season is it when {s}?
        Name the season when {s}.
        Tell me when {s}.
        Tell me the season in which {s}.
        At what time of the year {q}?
        When during the year can you say that {s}?
        Do you know when {s}?
        Please tell me in which season {s}.
        When in the year {q}?
        """),
        _lines("""
        When {q} during the year?
        What is the season when {s}?
        Please tell me when {s}.
        """),
    )
    colours = _table(
        "x y",
        """grass|green; snow|white; coal|black; blood|red; a banana|yellow; a lemon|yellow; the
        sky|blue; a carrot|orange; a pumpkin|orange; milk|white; a tomato|red; a strawberry|red; chocolate|brown; an
        elephant|gray; a flamingo|pink; a plum|purple; a polar bear|white; a crow|black; a frog|green; a leaf|green;
        a cucumber|green; salt|white; sugar|white; butter|yellow; a cherry|red; a fire truck|red; a swan|white;
        a pig|pink; an eggplant|purple; lavender|purple; a blueberry|blue; a ruby|red; an emerald|green;
        a sapphire|blue; the sun|yellow; a pea|green; a sunflower|yellow; cotton|white; a mouse|gray; a lime|green;
        mud|brown; the sea|blue; a fox|orange; the night|black; a brown bear|brown""",
    )
    yield Category(
        "colour",
        colours,
        "{y} is the color of {x}.",
        _lines("""
        What color is {x}?
        What is the color of {x}?
        Which color is {x}?
        Tell me the color of {x}.
        What color does {x} have?
        Name the color of {x}.
        Please tell me what color {x} is.
        Do you know the color of {x}?
        Which color does {x} have?
        {x} has which color?
        What color would you paint {x}?
        I want to paint {x}. Which color do I need?
        """),
        _lines("""
        Please tell me the color of {x}.
        Can you tell me what color {x} is?
        {x} is what color?
        """),
    )


def _animals() -> Iterator[Category]:
    sounds = _table(
        "x y",
        """dog|woof; cat|meow; cow|moo; sheep|baa; duck|quack; pig|oink; horse|neigh; lion|roar;
        frog|ribbit; owl|hoot; bee|buzz; snake|hiss; mouse|squeak; rooster|cock-a-doodle-doo; hen|cluck; wolf|howl;
        crow|caw; donkey|hee-haw; turkey|gobble; dove|coo; chick|cheep; goose|honk; cricket|chirp""",
    )
    yield Category(
        "sound",
        sounds,
        "{y} is what {a_x} says.",
        _lines("""
        What does {a_x} say?
        What sound does {a_x} make?
        What noise does {a_x} make?
        Which sound does {a_x} make?
        What is the sound of {a_x}?
        Tell me what {a_x} says.
        How does {a_x} sound?
        Which noise does {a_x} make?
        What is the noise of {a_x}?
        Make the sound of {a_x}.
        Please make a noise like {a_x}.
        Do you know what {a_x} says?
        What do you hear when {a_x} speaks?
        """),
        _lines("""
        Please tell me what {a_x} says.
        Can you make the sound of {a_x}?
        Tell me the sound of {a_x}.
        """),
        0.7,
    )
    young = _table(
        "x y",
        """dog|puppy; cat|kitten; cow|calf; horse|foal; sheep|lamb; goat|kid; pig|piglet;
        chicken|chick; duck|duckling; goose|gosling; bear|cub; lion|cub; deer|fawn; frog|tadpole; kangaroo|joey;
        swan|cygnet; owl|owlet; eagle|eaglet; wolf|pup; seal|pup; whale|calf; elephant|calf; rabbit|bunny;
        butterfly|caterpillar; fish|fry; spider|spiderling; turtle|hatchling; fox|kit; hare|leveret; eel|elver""",
    )
    yield Category(
        "young",
        young,
        "{a_y} is a baby {x}.",
        _lines("""
        What is a baby {x} called?
        What do you call a baby {x}?
        What is a young {x} called?
        What do you call a young {x}?
        What is the name for a baby {x}?
        How do you call the young of {a_x}?
        Tell me what a baby {x} is called.
        What do people call a little {x}?
        What is the baby of {a_x} called?
        Give me the word for a young {x}.
        Do you know what a baby {x} is called?
        Which word do we use for a baby {x}?
        """),
        _lines("""
        Please tell me what a baby {x} is called.
        What is the word for a baby {x}?
        Tell me the name for a young {x}.
        """),
    )
    homes = _table(
        "x y",
        """bird|in a nest; bee|in a hive; spider|in a web; rabbit|in a burrow; bear|in a cave; fish|in
        the water; lion|on the plains; camel|in the desert; penguin|on the ice; monkey|in the jungle; dog|in a kennel;
        horse|in a stable; pig|in a sty; ant|in an anthill; king|in a palace; owl|in a hollow tree; frog|in a pond;
        whale|in the ocean; squirrel|in the trees; mole|under the ground; beaver|in a lodge;
        wolf|in the forest; goat|in the mountains; hen|in a coop; knight|in a castle; farmer|on a farm""",
    )
    yield Category(
        "home",
        homes,
        "{y} is where {a_x} lives.",
        _lines("""
        Where does {a_x} live?
        Where is the home of {a_x}?
        Tell me where {a_x} lives.
        In what place does {a_x} live?
        Where can you find {a_x}?
        What is the home of {a_x}?
        Where would you look for {a_x}?
        Do you know where {a_x} lives?
        Where does {a_x} have its home?
        I am looking for {a_x}. Where is it?
        Name the place where {a_x} lives.
        Where does {a_x} sleep at night?
        """),
        _lines("""
        Please tell me where {a_x} lives.
        Where do you find {a_x}?
        Can you name the place where {a_x} lives?
        """),
        0.8,
    )
    legs = _table(
        "x y",
        """dog|four; cat|four; cow|four; horse|four; spider|eight; ant|six; bee|six; bird|two;
        chicken|two; person|two; snake|no; fish|no; worm|no; snail|no; elephant|four; duck|two; beetle|six; fly|six;
        penguin|two; table|four; butterfly|six; scorpion|eight; crab|ten; lizard|four; whale|no; lobster|ten;
        tick|eight; frog|four; ostrich|two; stool|three""",
    )
    yield Category(
        "legs",
        legs,
        "{y} legs.",
        _lines("""
        How many legs does {a_x} have?
        What number of legs does {a_x} have?
        How many legs do you count on {a_x}?
        Tell me how many legs {a_x} has.
        Count the legs of {a_x}.
        {a_x} has how many legs?
        Do you know how many legs {a_x} has?
        On how many legs does {a_x} stand?
        What is the number of legs of {a_x}?
        Give me the number of legs of {a_x}.
        If I see {a_x}, how many legs do I see?
        I would like to know how many legs {a_x} has.
        """),
        _lines("""
        Please tell me how many legs {a_x} has.
        Can you count the legs of {a_x}?
        Tell me the number of legs of {a_x}.
        """),
        0.8,
    )


_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August"]
_MONTHS += ["September", "October", "November", "December"]
_LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _ordering(name: str, unit: str, ring: list[str], closed: bool) -> Category:
    """Return successor and predecessor of each member of `ring`."""
    size, facts = len(ring), []
    for i, item in enumerate(ring):
        if closed or i + 1 < size:
            facts.append({"x": item, "r": "after", "y": ring[(i + 1) % size]})
        if closed or i > 0:
            facts.append({"x": item, "r": "before", "y": ring[i - 1]})
    return Category(
        name,
        tuple(facts),
        f"{{y}} is the {unit} {{r}} {{x}}.",
        _lines(f"""
        What {unit} comes {{r}} {{x}}?
        Which {unit} comes {{r}} {{x}}?
        What {unit} is {{r}} {{x}}?
        What is the {unit} {{r}} {{x}}?
        Tell me the {unit} {{r}} {{x}}.
        Name the {unit} {{r}} {{x}}.
        Which {unit} is right {{r}} {{x}}?
        What comes {{r}} {{x}}?
        The {unit} {{r}} {{x}} is what?
        Do you know the {unit} {{r}} {{x}}?
        Give me the {unit} that comes {{r}} {{x}}.
        What is the name of the {unit} {{r}} {{x}}?
        """),
        _lines(f"""
        Please tell me the {unit} {{r}} {{x}}.
        Which {unit} is {{r}} {{x}}?
        Can you name the {unit} that comes {{r}} {{x}}?
        """),
        0.7,
    )


def _order() -> Iterator[Category]:
    yield _ordering("day", "day", _DAYS, closed=True)
    yield _ordering("month", "month", _MONTHS, closed=True)
    yield _ordering("letter", "letter", _LETTERS, closed=False)


def _things() -> Iterator[Category]:
    materials = _table(
        "x y",
        """window|glass; bottle|glass; table|wood; door|wood; pencil|wood; nail|iron;
        sword|steel; knife|steel; coin|metal; shirt|cotton; sweater|wool; scarf|wool; shoe|leather; belt|leather;
        book|paper; newspaper|paper; tire|rubber; ball|rubber; house|bricks; chimney|bricks; statue|stone; castle|stone;
        cup|clay; pot|clay; candle|wax; ring|gold; crown|gold; snowman|snow; rope|hemp; bucket|plastic; toy|plastic;
        pillow|feathers; basket|straw; road|asphalt""",
    )
    yield Category(
        "material",
        materials,
        "{y} is what {a_x} is made of.",
        _lines("""
        What is {a_x} made of?
        What material is {a_x} made of?
        Of what is {a_x} made?
        Tell me what {a_x} is made of.
        From what material do people make {a_x}?
        What do you need to make {a_x}?
        What do people use to make {a_x}?
        Name the material of {a_x}.
        Which material is {a_x} made of?
        What is the material of {a_x}?
        Do you know what {a_x} is made of?
        I want to make {a_x}. What material do I need?
        """),
        _lines("""
        Please tell me what {a_x} is made of.
        Tell me the material of {a_x}.
        Which material do people use to make {a_x}?
        """),
    )
    kinds = _table(
        "x y",
        """apple|fruit; pear|fruit; banana|fruit; plum|fruit; carrot|vegetable; onion|vegetable;
        cabbage|vegetable; potato|vegetable; rose|flower; tulip|flower; daisy|flower; oak|tree; pine|tree; birch|tree;
        hammer|tool; saw|tool; shovel|tool; piano|instrument; violin|instrument; drum|instrument; flute|instrument;
        eagle|bird; sparrow|bird; penguin|bird; shark|fish; salmon|fish; trout|fish; ant|insect; bee|insect;
        beetle|insect; snake|reptile; lizard|reptile; chair|piece of furniture; table|piece of furniture;
        bed|piece of furniture; shirt|piece of clothing; hat|piece of clothing; coat|piece of clothing; car|vehicle;
        bus|vehicle; truck|vehicle; circle|shape; square|shape; triangle|shape; diamond|gem; ruby|gem; dog|mammal;
        horse|mammal; whale|mammal; mouse|mammal""",
    )
    yield Category(
        "kind",
        kinds,
        "{a_y}.",
        _lines("""
        What kind of thing is {a_x}?
        What is {a_x}?
        What sort of thing is {a_x}?
        Tell me what {a_x} is.
        What type of thing is {a_x}?
        To what kind of things does {a_x} belong?
        What would you call {a_x}?
        Explain what {a_x} is.
        Do you know what {a_x} is?
        {a_x} is what kind of thing?
        In one word, what is {a_x}?
        To which group does {a_x} belong?
        """),
        _lines("""
        Please tell me what {a_x} is.
        Tell me what kind of thing {a_x} is.
        {a_x} is what sort of thing?
        """),
    )
    uses = _table(
        "x y",
        """knife|cut bread; pen|write; key|open a door; broom|sweep the floor; needle|sew; cup|drink;
        bed|sleep; oven|bake; hammer|hit nails; shovel|dig; umbrella|stay dry; clock|tell the time; phone|call people;
        lamp|make light; brush|paint; soap|wash; towel|dry off; spoon|eat soup; ladder|climb; map|find the way;
        boat|cross the water; camera|take pictures; comb|tidy hair; scale|weigh things; ruler|measure;
        rake|gather leaves; pillow|rest your head; net|catch fish; kettle|boil water; mirror|see yourself""",
    )
    yield Category(
        "use",
        uses,
        "To {y}.",
        _lines("""
        What do you use {a_x} for?
        What is {a_x} for?
        What is {a_x} used for?
        What can you do with {a_x}?
        Why do people need {a_x}?
        Tell me what {a_x} is for.
        What do people do with {a_x}?
        For what do you need {a_x}?
        I have {a_x}. What can I do with it?
        What is the use of {a_x}?
        Do you know what {a_x} is used for?
        Explain what people do with {a_x}.
        """),
        _lines("""
        Please tell me what {a_x} is used for.
        What do people use {a_x} for?
        Tell me what you can do with {a_x}.
        """),
    )
    jobs = _table(
        "x y",
        """baker|bakes bread; teacher|teaches children; doctor|helps sick people; farmer|grows food;
        pilot|flies planes; painter|paints pictures; singer|sings songs; writer|writes books; cook|makes meals;
        tailor|sews clothes; dentist|fixes teeth; driver|drives a car; judge|decides in court; miner|digs for coal;
        gardener|plants flowers; fisherman|catches fish; carpenter|works with wood; shepherd|looks after sheep;
        librarian|lends books; firefighter|puts out fires; soldier|guards the country; plumber|repairs pipes;
        butcher|sells meat; barber|cuts hair; sailor|sails ships; astronaut|travels to space; actor|plays in films;
        dancer|dances on stage; builder|builds houses; vet|heals animals""",
    )
    yield Category(
        "job",
        jobs,
        "{a_x} {y}.",
        _lines("""
        What does {a_x} do?
        What is the work of {a_x}?
        What does {a_x} do at work?
        Tell me what {a_x} does.
        What is the job of {a_x}?
        What does {a_x} do all day?
        Explain what {a_x} does.
        What do you know about the work of {a_x}?
        How does {a_x} spend the day?
        Do you know what {a_x} does?
        I met {a_x}. What work is that?
        Describe the job of {a_x}.
        """),
        _lines("""
        Please tell me what {a_x} does.
        Describe the work of {a_x}.
        Do you know what {a_x} does all day?
        """),
    )
    yield Category(
        "worker",
        jobs,
        "{a_x}.",
        _lines("""
        Who {y}?
        Which person {y}?
        Tell me who {y}.
        Name the person who {y}.
        What do you call a person who {y}?
        What do you call someone who {y}?
        Who is it that {y}?
        What is the name for someone who {y}?
        Who is the person that {y}?
        Give me the word for someone who {y}.
        Do you know who {y}?
        Somebody {y}. Who is it?
        """),
        _lines("""
        Please tell me who {y}.
        What is the word for a person who {y}?
        Name someone who {y}.
        """),
    )


# name | adjective | home | what it finds | what it does then | how it ends
_STORIES = """fox|clever|in a quiet forest|a silver key|opened a hidden door|it had a warm home for the winter;
    cat|curious|in an old lighthouse|a lost star|carried it back to the sky|the night was never dark again;
    dragon|shy|on a green hill|a broken kite|mended it with care|it flew with the children every day;
    robot|small|in a busy city|a yellow flower|gave it water and light|the whole street was full of color;
    rabbit|brave|under a big oak|a secret map|followed it to the sea|it told the best stories of all;
    owl|wise|in a tall tower|a sad little bird|taught it how to sing|the forest woke up to music;
    whale|gentle|in the deep blue sea|a ship in a storm|guided it to the harbor|the sailors were its friends;
    mouse|tiny|in a royal kitchen|a sleeping king|baked him a golden cake|it ate at the royal table;
    bear|lazy|in a cave by the river|a box of paints|painted the gray rocks|visitors came from far away;
    girl|cheerful|in a village by the lake|a talking stone|asked it for advice|she was never alone again;
    boy|kind|on a farm|a frozen bird|warmed it with his hands|it sang at his window each morning;
    horse|white|on a windy plain|a fallen rainbow|pulled it up again|it had a mane of seven colors;
    snail|patient|in a garden|a letter from the moon|read it to all the others|they danced in the moonlight;
    turtle|old|on a lonely island|a bottle with a wish|shared it with a crab|they were happy together;
    wizard|young|in a crooked house|a hat full of clouds|let them fly away|the fields had rain again;
    queen|proud|in a palace of glass|an honest mirror|laughed at herself|her people loved her dearly;
    penguin|funny|on the cold ice|a red balloon|held on to it tightly|it could say that it had flown;
    dog|loyal|near a train station|a lost child|led her safely home|they played there every day;
    bee|busy|in a hollow tree|a field of blue flowers|called all its sisters|their honey was the sweetest;
    giant|lonely|behind the mountains|a small drum|played it all night|the villagers came to dance"""


def _stories() -> Iterator[Category]:
    facts = _table("x j h f d e", _STORIES)
    tale = "Once upon a time, {a_x} lived {h}. One day, the {j} {x} found {f} and {d}. From then on, {e}."
    yield Category(
        "story",
        facts,
        tale,
        _lines("""
        Tell me a story about {a_x}.
        Tell a short story about {a_x}.
        Write a story about {a_x}.
        Please tell me a short story about {a_x}.
        I would like to hear a story about {a_x}.
        Can you tell me a story about {a_x}?
        Write a short story with {a_x} in it.
        Do you know a story about {a_x}?
        Make up a story about {a_x}.
        Tell me a tale about {a_x}.
        Give me a nice story about {a_x}.
        Write a little tale about {a_x}.
        """),
        _lines("""
        Please write a story about {a_x}.
        Can you make up a story about {a_x}?
        Tell me a creative story about {a_x}.
        """),
        0.8,
    )
    yield Category(
        ANY_STORY,
        facts,
        tale,
        _lines("""
        Tell me a story.
        Tell me a short story.
        Tell me a nice story.
        Write a story.
        Write a creative story.
        Write a short story.
        Please tell me a story.
        I would like to hear a story.
        Can you tell me a story?
        Make up a creative tale.
        Make up a story.
        Do you know a story?
        Give me a creative story.
        """),
        _lines("""
        Tell me a creative story.
        Please write a short story.
        Can you make up a story?
        """),
        0.5,
    )


ANY_STORY = "any-story"
"""The only category without a unique answer: any trained story is correct."""


@cache
def categories() -> tuple[Category, ...]:
    """Return all categories, in a fixed order."""
    groups = (_capitals, _words, _arithmetic, _nature, _animals, _order, _things, _stories)
    return tuple(category for group in groups for category in group())
