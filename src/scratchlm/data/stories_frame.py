"""The frame of every story: the opening, the friends, the time, the feelings and the end, shared by all plots.

See `stories_grammar` for the notation. Sentences of one rule begin differently or differ before one of
them ends.
"""
# ruff: noqa: E501 (a template is one line)

FRAME: dict[str, tuple[str, ...]] = {
    "story": ("<open> <about> <meet> <plot> <close>",),
    "open": (
        "3| Once upon a time, there was {trait.a} {kind} named {hero}.",
        "2| Once there was {trait.a} {kind} called {hero}, who lived near the {home}.",
        "2| {hero} was {trait.a} {kind} who lived by the {home}.",
        "2| In a house near the {home} lived {trait.a} {kind} named {hero}.",
        "1| This is the story of {hero}, {trait.a} {kind} from the house beside the {home}.",
        "1| Far away, behind the {home}, lived {trait.a} {kind} whose name was {hero}.",
        "1| Everyone near the {home} knew {hero}, {trait.a} {kind} with a big smile.",
        "1| Long ago, {trait.a} {kind} named {hero} lived close to the {home}.",
    ),
    "about": (
        "3| {hero.He} loved to {hobby} and to {hobby2}.",
        "2| {hero.He} liked {hobby.ing} more than anything else.",
        "2| {hero.His} favorite thing to do was {hobby.ing}.",
        "1| {hero.He} was very good at {hobby.ing}.",
        "1| {hero.He} always wore {+color.a} hat, even when it was time to {hobby}.",
        "1| Every {+weekday}, {hero.he} got up early to {hobby}.",
        "1| Nobody was better at {hobby.ing} than {hero.he} was.",
        "1| In {+season}, {hero.he} loved to {hobby}.",
    ),
    "meet": (
        "3| {hero.His} best friend was {friend}, who lived {+where}.",
        "2| {hero.He} had {+relation.a} named {friend}, and they often {+play}.",
        "2| {friend} was {hero.his} {+relation}, and every {+weekday} they {+play}.",
        "1| {hero.He} and {hero.his} {+relation} {friend} often {+play}.",
        "1| One of {hero.his} friends was {friend}, who always {+quirk}.",
        "1| {hero.His} {+relation} {friend} always {+quirk}.",
    ),
    "time": (
        "4| One {+weather} {+daypart},",
        "2| One {+daypart} in {+season},",
        "2| On {+weekday} {+daypart},",
        "2| One day after {+meal},",
        "1| Early one {+weekday},",
        "1| One day,",
    ),
    "glad": (
        "2| {hero} was so {+glad} that {hero.he} jumped up and down.",
        "2| {hero} felt very {+glad}.",
        "2| They both felt {+glad}.",
        "1| {hero} and {friend} were {+glad} and gave each other a hug.",
        "1| {friend} clapped, and {hero} laughed because {hero.he} was so {+glad}.",
        '1| "I am so {+glad}!" said {hero}.',
    ),
    "offer": (
        '2| "I will help you," said {friend} {+manner}.',
        '2| "Do not be {+sad}," {friend} said {+manner}. "We can do it together."',
        '1| "I have an idea," said {friend} {+manner}.',
        "1| {friend} smiled {+manner} and stayed to help.",
        '1| "Two are better than one," {friend} said {+manner}.',
        "1| {friend} took a deep breath and thought for a moment.",
    ),
    "thanks": (
        '2| "{+cheer}!" {hero} shouted.',
        '2| "{+cheer}! You are a good friend," said {hero}.',
        '2| "Thank you, {friend}," {hero} said {+manner}.',
        '1| "{+cheer}! We did it!" they shouted together.',
        "1| {hero} gave {friend} a big hug.",
    ),
    "learned": (
        "3| {hero} learned that",
        "2| From that day on, {hero} knew that",
        "1| {hero} never forgot that",
        "1| That day, {hero} understood that",
        "1| Now {hero} knew that",
        "1| And so {hero} and {friend} learned that",
    ),
    "close": (
        "2| Then {adult} made {+treat} for everyone.",
        "2| That evening, {adult} gave them {+treat} and listened to the whole story.",
        "2| That night, the {trait} {kind} fell asleep with a smile.",
        "2| After that, they went home and had some {+treat}.",
        "1| When {adult} heard about it, there was {+treat} for both of them.",
        "1| In the evening, {hero} told {adult} all about it.",
        "1| The {trait} {kind} and {hero.his} friend {friend} lived happily near each other for many years.",
        "1| And the next {+weekday}, they {+play} again.",
        '1| "What a good day," said {friend}, and {hero} agreed.',
    ),
}
