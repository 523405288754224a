"""The words of the embedded stories: lists in, variables of the grammar out.

Every list is one class of words that fit the same places: colours fit every toy, a hiding place keeps its
preposition. Words of the lists that the consistency scorer follows (toys, hiding places, names) stand in
no other list, so a second mention of such a word is always a statement about the first. Format of a list:
see `stories_grammar.entries`.

Our own choice of words, in the manner of Eldan and Li 2023, "TinyStories",
https://arxiv.org/abs/2305.07759.
"""

from scratchlm.data.stories_grammar import Entry, Variable, entries

GIRLS = """falling: Lily, Mia, Anna, Sara, Lucy, Emma, Zoe, Nora, Ella, Amy, Rosie, Molly, Kate,
 Ruby, Daisy, Clara, Ivy, Jane, Tina, Maya, Eva, Bella, Holly, Penny, Nina, Stella, Tara,
 Wendy, Olive, Hazel, Fiona, Greta, Lola, Poppy, Matilda"""
BOYS = """falling: Tom, Ben, Sam, Max, Tim, Leo, Jack, Finn, Oscar, Noah, Henry, Luke, Dan,
 Charlie, Peter, Billy, Theo, Eli, Adam, Jake, Toby, Felix, Hugo, Owen, Bobby, Kevin,
 Simon, Jasper, Milo, Ned, Otto, Ravi, Walter, Victor, Archie"""
ANIMALS = """rabbit, fox, bear, mouse, squirrel, hedgehog, beaver, owl, otter, badger, penguin,
 elephant, lion, tiger, monkey, panda, koala, deer, raccoon, pony"""
TRAITS = """falling: little, kind, curious, cheerful, brave, friendly, clever, playful, gentle,
 happy, lively, helpful, young, merry, thoughtful, polite, eager, jolly, busy, honest,
 sweet, quiet, careful, funny, smart, hopeful, energetic, dreamy, bold, neat,
 adventurous, small, sleepy, good-natured, chatty, tidy"""
HOMES = """river, forest, lake, sea, hill, mountain, meadow, mill, windmill, lighthouse, railway,
 harbor, castle, orchard, school, church, valley, bus stop, duck pond, post office,
 fire station, bakery, waterfall, village square"""
TOYS = """falling: ball, kite, teddy bear, drum, doll, toy car, robot, puppet, spinning top,
 toy train, yo-yo, flute, whistle, jump rope, toy boat, picture book, puzzle, trumpet,
 marble, toy truck, toy plane, toy horse, music box, xylophone, magnet, telescope,
 dinosaur, balloon, umbrella, tambourine"""
COLORS = """falling: red, blue, green, yellow, pink, purple, white, golden, brown, silver, striped,
 spotted, shiny, bright, colorful, gray, black, painted, sparkling, beautiful"""
SPOTS = """falling: under the bed, in the basket, behind the couch, on the shelf, in the box,
 under the table, in the closet, behind the door, in the drawer, on the windowsill,
 in the wagon, under the bench, behind the curtain, in the barn, on the porch,
 in the attic, under the stairs, behind the bookcase, in the cupboard, in the suitcase,
 on the piano, under the blanket, in the hamper, in the shed"""
SEARCHES = """in every pocket, on the floor, in the kitchen, in the bathroom, in the hall,
 beside the fireplace, around the yard, under a pillow, between the cushions,
 near the gate, in the mud, among the flowers, in the tall grass, on the roof,
 in the sink, under a rug, in the mailbox, next to the stove, in the bathtub,
 by the fence"""
ADULTS = """falling: Mom, Dad, Grandma, Grandpa, Aunt May, Uncle Joe, Aunt Rose, Mrs. Bell,
 Mr. Brown, Uncle Fred, Miss Honey, Mrs. Hill, Mr. Carter, Cousin Ruth, Mrs. Parker,
 Mr. Wood"""
HOBBIES = """falling: draw pictures/drawing pictures/drew pictures,
 sing songs/singing songs/sang songs, climb trees/climbing trees/climbed trees,
 pick flowers/picking flowers/picked flowers, dance/dancing/danced,
 tell jokes/telling jokes/told jokes,
 fly paper planes/flying paper planes/flew paper planes,
 chase butterflies/chasing butterflies/chased butterflies,
 jump in puddles/jumping in puddles/jumped in puddles,
 build sandcastles/building sandcastles/built sandcastles,
 watch the birds/watching the birds/watched the birds,
 collect shells/collecting shells/collected shells, read books/reading books/read books,
 play tag/playing tag/played tag, skip stones/skipping stones/skipped stones,
 count the clouds/counting the clouds/counted the clouds,
 dig holes/digging holes/dug holes, swim/swimming/swam,
 feed the ducks/feeding the ducks/fed the ducks,
 roll down the hill/rolling down the hill/rolled down the hill,
 play hide and seek/playing hide and seek/played hide and seek,
 blow bubbles/blowing bubbles/blew bubbles,
 listen to stories/listening to stories/listened to stories,
 bake cookies/baking cookies/baked cookies, ride a bike/riding a bike/rode a bike,
 catch frogs/catching frogs/caught frogs, look for bugs/looking for bugs/looked for bugs,
 hop on one foot/hopping on one foot/hopped on one foot,
 water the plants/watering the plants/watered the plants,
 gather leaves/gathering leaves/gathered leaves"""
SNACKS = """falling: apple, cookie, banana, sandwich, bagel, muffin, pear, peach, carrot, pancake,
 ~cheese, ~popcorn, plum, cupcake, ~yogurt, orange, ~cereal, waffle, pretzel, ~melon,
 biscuit, egg, ~toast, ~rice, cracker, ~jelly"""
DISHES = """falling: apple pie, ice cream, chocolate cake, vegetable soup, strawberry jam,
 fresh bread, blueberry pie, noodles, pizza, cinnamon rolls, peanut butter cookies,
 pumpkin soup, sweet corn, fruit salad, mashed potatoes, grapes, raspberries,
 baked apples, tomato soup, macaroni, rice pudding, meatballs, roasted chestnuts,
 dumplings"""
DRINKS = "hot chocolate, warm milk, lemonade, honey tea, cherry juice, cold water"
RELATIONS = "friend*4, neighbor*2, cousin*2, classmate, playmate"
PLAY = """played together, laughed together, walked to school, made up games, shared secrets,
 told each other stories, played outside, went exploring, had a picnic, rode their bikes,
 watched the sunset, fed the birds, sang silly songs, raced around, collected stamps,
 built little dams"""
WHERE = """next door, across the street, around the corner, just down the road,
 on the other side of the garden, two houses away, upstairs, on a small farm,
 in a yellow house, in a tiny cottage, behind the market, at the end of the lane"""
QUIRKS = """had a joke to tell, wore a funny hat, carried a big backpack, hummed a tune,
 knew what to do, asked a lot of questions, made everyone laugh, had a new idea,
 smiled at everyone, spoke in a soft voice, ran very fast, shared everything,
 wore rubber boots, had time to listen, whistled like a bird, told the truth"""
WEATHER = """falling: sunny, warm, bright, cool, windy, clear, fine, cloudy, foggy, chilly, breezy,
 mild, quiet, hot, pleasant"""
DAYPARTS = "morning*4, afternoon*3, evening"
WEEKDAYS = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday*2, Sunday*2"
SEASONS = "spring, summer, autumn, winter"
MEALS = (
    """breakfast*2, lunch*2, school*2, a short nap, a long walk, dinner, the holidays, church, music class"""
)
GLAD = """falling: happy, glad, proud, excited, delighted, thankful, pleased, joyful, relieved,
 grateful, content, merry"""
SAD = """falling: sad, upset, worried, unhappy, gloomy, lonely, disappointed, miserable,
 troubled, downhearted"""
CHEERS = """falling: Hooray, Yay, Wow, Great, Wonderful, Yes, Look, Amazing, Fantastic, Hurray,
 Super, Yippee, Oh boy, Goody, Marvelous"""
SIGHS = "falling: Oh no, Oh dear, Uh-oh, Help, Alas, Goodness, Oh my goodness, Dear me"
MANNERS = """falling: softly, quietly, kindly, gently, slowly, calmly, sweetly, warmly, politely,
 thoughtfully, patiently, shyly"""
PETS = """puppy*2, kitten*2, duckling, baby bird, lamb, baby goat, turtle, piglet, chick, hamster,
 sparrow, snail, frog, ladybug, gosling, lizard"""
TRAPS = """stuck in a hole, caught in a net, tangled in a string, trapped under a branch,
 stuck in a fence, stuck between two rocks, caught in a thorny bush, stuck in a bucket,
 trapped behind a wall, stuck in wet clay, caught in a wire, tangled in a vine,
 trapped in a pipe, stuck under a log"""
TOOLS = """stick, ladder, shovel, rope, blanket, spoon, glove, towel, scarf, board, hook, broom,
 long pole, wooden plank, rake, walking cane"""
FEARS_DARK = "the dark*2, the old cellar, the night, shadows, the long tunnel"
FEARS_LOUD = "thunder*2, loud noises, the vacuum cleaner, fireworks, the big bell"
FEARS_HIGH = "the tall slide*2, high places, the climbing wall, the diving board, the rope bridge"
FEARS_ALIVE = "spiders, big dogs*2, bees, the geese, snakes"
STEPS_DARK = """turned on a small flashlight, counted slowly to ten, held hands and took one step,
 whispered a funny rhyme, lit a candle, looked up at the stars"""
STEPS_LOUD = """covered their ears and laughed, clapped along with the noise,
 hummed as loudly as they could, counted the seconds, hugged a pillow,
 made a silly noise of their own"""
STEPS_HIGH = """climbed just one step, held the rail tightly, looked straight ahead,
 went up very slowly, took a deep breath, held hands all the way up"""
STEPS_ALIVE = """watched from far away, stood very still, took one step closer, spoke in a calm voice,
 learned a fact from a book, waited without a sound"""
MADE_PAPER = (
    """birthday card, paper crown, paper lantern, paper dragon, photo album, mask, poster, paper chain"""
)
MADE_FOOD = "birthday cake, fruit tart, loaf of bread, cheese pie, big pancake, gingerbread house"
MADE_WOOD = "birdhouse, wooden stool, tree house, doghouse, picture frame, wooden chest"
MATERIALS_PAPER = "glue*2, tape, paint, ribbon, glitter, string, colored paper, ink"
MATERIALS_FOOD = "flour*2, sugar*2, butter, milk, salt, honey, vanilla, baking powder"
MATERIALS_WOOD = "wood*2, nails, rope, screws, varnish, sandpaper"
WORK_PAPER = (
    "cut and folded, glued and colored, snipped and painted, measured and pasted, sketched and trimmed"
)
WORK_FOOD = (
    """mixed and stirred, washed and chopped, poured and tasted, rolled and kneaded, measured and baked"""
)
WORK_WOOD = (
    "hammered and sawed, measured and drilled, sanded and polished, carried and nailed, lifted and joined"
)
DAYS = "birthday*3, name day, big party, first day of work, moving day, holiday, anniversary"
SEEDS_FLOWER = "sunflower*2, tulip, daffodil, poppy, rose, violet, pansy, marigold"
SEEDS_FOOD = "pumpkin*2, bean, pea, tomato, cucumber, radish, potato, cabbage"
GROWN_FLOWER = """bloomed in the sun, opened its soft petals, smelled sweet, stood taller than the fence,
 was the prettiest flower of all, welcomed the first butterfly, shone like a little star"""
GROWN_FOOD = """was ready to eat, was bigger than a shoe, tasted better than candy, filled a whole pot,
 was the best in town, was large enough for everyone, won a prize at the fair"""
WAITS = """three days, four days, five days, a week, two weeks, three weeks, a month, many days,
 a long time, ten days"""
RACES = "running race, swimming race, sack race, bike race, boat race, egg race, ski race, obstacle race"
PRIZES = "medal*2, cup, blue ribbon*2, trophy, bag of candy, gold star, wreath, certificate"
STOPS = """take a nap, eat a snack, chat with a friend, look at the view, tie a shoe,
 wave at the crowd, drink juice, rest in the shade, show off, pick berries"""
TASKS = """feed the cat, water the roses, mail a letter, buy some eggs, sweep the steps,
 bring in the laundry, carry the firewood, wash the dishes, walk the dog,
 fetch the newspaper, set the table, return the library books, lock the gate,
 clean the birdcage, pick up the mail, shake out the rugs"""
LURES = """funny clown, marching band, ice cream truck, flower festival, snowball fight,
 big parade, juggler, soccer game, treasure hunt, fair with rides, magic show,
 circus tent, sing-along, street dance"""
BREAKABLES = """vase*2, teapot, plate, mirror, lamp, clock, china dog, flower pot, jar, candlestick,
 bowl, glass, snow globe, pitcher"""
MISHAPS = """ran through the room, threw a pillow, kicked a shoe, spun around too fast,
 jumped off a chair, waved a stick, danced too wildly, slipped on a sock, chased a fly,
 stretched too far, swung a bag, played catch indoors"""
SHELTERS = (
    """tent, fort, cave, pirate ship, spaceship, theater, tunnel, train, shop, hospital, restaurant, igloo"""
)
STUFF = """sheets and chairs, pillows and blankets, cardboard boxes, old curtains,
 two stools and a quilt, a table and a cloth, sofa cushions, towels and clothespins,
 wooden blocks, brooms and bed covers"""
OUTINGS = """the zoo, the beach, the park, the playground, the market, the museum, the farm,
 the swimming pool, the island, the woods, the library, the aquarium, the skating rink,
 the toy store, the train station, the bookshop"""
LOADS = """log, cart, rock, wheelbarrow, sled, barrel, snowball, table, trunk, tractor tire, bench,
 hay bale, statue, canoe"""
LEVERS = "long pole, rope, wooden plank, iron bar, board, shovel, strong stick, ramp, pulley, wheel"
NIBBLES = "~water*2, ~food*2, crumb, berry, leaf, nut, ~grass, ~seeds, ~hay, ~clover"
VIEWS = """falling: quiet, pretty, old, little, green, famous, lonely, windy, big, tiny, peaceful,
 faraway, misty, lovely, ancient, hidden"""
FEATURES = """falling: a big smile, bright eyes, quick feet, a loud laugh, a soft voice, a good heart,
 a tiny nose, long legs, a sharp mind, rosy cheeks, strong arms, a cozy room,
 many friends, big dreams, messy hair, freckles"""
CLOTHES = """hat*3, scarf*2, coat, sweater, jacket, cap, vest, raincoat, bow tie, belt, apron, shirt,
 necklace, cape"""
DREAMS = """falling: stars, pirates, flying, dragons, the moon, snow, tomorrow, mermaids,
 adventures, fairies, knights, rainbows, rockets, unicorns, treasure, new games,
 the ocean, candy, elves, a giant, sailing, a magic carpet"""
SAYS = "said*6, replied, whispered, answered, called"
SHOUTS = "shouted*3, cried*2, called*2, laughed, yelled, sang, cheered, exclaimed"
JOYS = """danced around, jumped up and down, clapped, laughed out loud, hugged everyone,
 sang a little song, ran in circles, hopped up and down, waved both arms,
 could not stop smiling, turned a somersault, cheered"""
PET_LOOKS = """small*2, tiny*2, hungry, cold, wet, frightened, muddy, thin, tired, trembling, dusty,
 helpless"""
SIZES = "big*2, heavy*2, huge, enormous, giant, massive, thick, wide, dirty"
COZY = "cozy*2, secret, tiny, splendid, warm, royal, magic, colorful, comfortable, fine, mysterious"
NICE = "beautiful*2, special, lovely, perfect, pretty, wonderful, fine, nice, splendid, charming, cute"
WAYS = "walked, ran, hurried, skipped, marched, strolled, rushed, trotted, jogged, raced"
BLOCKED = """the path, the road, the garden gate, the front door, the bridge, the driveway,
 the sidewalk, the way to school, the playhouse, the doorway"""
PUSHES = """pushed and pushed, pulled with both arms, shoved with one shoulder,
 tugged as hard as possible, tried three times, leaned on it, kicked it,
 huffed and puffed"""


CHILDREN = {"girl": "f", "boy": "m"}


def _kinds(*children: str) -> list[Entry]:
    """Return children, half of the time, and animals, which have names of both sorts."""
    found = [
        entry
        for child in children
        for entry in entries(f"{child}*{40 // len(children)}", kind=CHILDREN[child])
    ]
    return found + entries(ANIMALS, kind="animal")


def _by_class(**lists: str) -> dict[str, list[Entry]]:
    return {kind: entries(spec) for kind, spec in lists.items()}


def _classes(**lists: str) -> list[Entry]:
    """Return one list whose entries carry the class they came from."""
    return [entry for kind, spec in lists.items() for entry in entries(spec, kind=kind)]


def variables() -> dict[str, Variable]:
    """Return all variables of the stories: those with several classes first, then the plain lists."""
    names = {"f": entries(GIRLS, kind="f"), "m": entries(BOYS, kind="m")}
    both = names["f"] + names["m"]
    made = _classes(paper=MADE_PAPER, food=MADE_FOOD, wood=MADE_WOOD)
    fears = _classes(dark=FEARS_DARK, loud=FEARS_LOUD, high=FEARS_HIGH, alive=FEARS_ALIVE)
    hobbies, searches, weather = entries(HOBBIES), entries(SEARCHES), entries(WEATHER)
    found = {
        "hero": Variable(names | {"": both, "animal": both}, parent="kind"),
        "friend": Variable({"f": names["m"], "m": names["f"]}, parent="hero"),
        "kind": Variable({"": _kinds("girl", "boy"), "f": _kinds("girl"), "m": _kinds("boy")}, parent="hero"),
        "trait": Variable({"": entries(TRAITS)}),
        "weather": Variable({"": weather}),
        "weather2": Variable({"": weather}, avoids=("weather",)),
        "hobby": Variable({"": hobbies}),
        "hobby2": Variable({"": hobbies}, avoids=("hobby",)),
        "search": Variable({"": searches}),
        "search2": Variable({"": searches}, avoids=("search",)),
        "made": Variable({"": made}),
        "material": Variable(
            _by_class(paper=MATERIALS_PAPER, food=MATERIALS_FOOD, wood=MATERIALS_WOOD), parent="made"
        ),
        "work": Variable(_by_class(paper=WORK_PAPER, food=WORK_FOOD, wood=WORK_WOOD), parent="made"),
        "fear": Variable({"": fears}),
        "step": Variable(
            _by_class(dark=STEPS_DARK, loud=STEPS_LOUD, high=STEPS_HIGH, alive=STEPS_ALIVE), parent="fear"
        ),
        "seed": Variable({"": _classes(flower=SEEDS_FLOWER, food=SEEDS_FOOD)}),
        "grown": Variable(_by_class(flower=GROWN_FLOWER, food=GROWN_FOOD), parent="seed"),
    }
    plain = {
        "home": HOMES,
        "toy": TOYS,
        "color": COLORS,
        "spot": SPOTS,
        "adult": ADULTS,
        "snack": SNACKS,
        "dish": DISHES,
        "treat": f"{DISHES}, {DRINKS}",
        "relation": RELATIONS,
        "play": PLAY,
        "where": WHERE,
        "quirk": QUIRKS,
        "daypart": DAYPARTS,
        "weekday": WEEKDAYS,
        "season": SEASONS,
        "meal": MEALS,
        "glad": GLAD,
        "sad": SAD,
        "cheer": CHEERS,
        "sigh": SIGHS,
        "manner": MANNERS,
        "pet": PETS,
        "trap": TRAPS,
        "tool": TOOLS,
        "day": DAYS,
        "wait": WAITS,
        "race": RACES,
        "prize": PRIZES,
        "stop": STOPS,
        "task": TASKS,
        "lure": LURES,
        "breakable": BREAKABLES,
        "mishap": MISHAPS,
        "shelter": SHELTERS,
        "stuff": STUFF,
        "outing": OUTINGS,
        "load": LOADS,
        "blocked": BLOCKED,
        "push": PUSHES,
        "lever": LEVERS,
        "nibble": NIBBLES,
        "view": VIEWS,
        "feature": FEATURES,
        "clothes": CLOTHES,
        "dream": DREAMS,
        "said": SAYS,
        "shouted": SHOUTS,
        "way": WAYS,
        "joy": JOYS,
        "pet_look": PET_LOOKS,
        "size": SIZES,
        "cozy": COZY,
        "nice": NICE,
    }
    return found | {name: Variable({"": entries(spec)}) for name, spec in plain.items()}
