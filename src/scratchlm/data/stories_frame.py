"""The frame of every story: the opening, the friends, the time, the feelings and the end, shared by all plots.

See `stories_grammar` for the notation. Sentences of one rule begin differently or differ before one of
them ends.
"""
# ruff: noqa: E501 (a template is one line)

FRAME: dict[str, tuple[str, ...]] = {
    "story": ("<open> <about> <meet> <plot> <close>",),
    "open": (
        "3| Once upon a time, there was {trait.a} {kind} named {hero}, who had {+feature}.",
        "2| Once there was {trait.a} {kind} called {hero}, who lived near the {+view} {home}.",
        "2| {hero} was {trait.a} {kind} who lived by the {+view} {home}.",
        "2| In a house near the {+view} {home} lived {trait.a} {kind} named {hero}.",
        "1| This is the story of {hero}, {trait.a} {kind} from the house beside the {+view} {home}.",
        "1| Far away, beyond the {+view} {home}, lived {trait.a} {kind} whose name was {hero}.",
        "1| Everyone near the {+view} {home} knew {hero}, {trait.a} {kind} with {+feature}.",
        "1| Long ago, {trait.a} {kind} named {hero} lived close to the {+view} {home}.",
    ),
    "about": (
        "3| {hero.He} loved to {hobby}, to {hobby2} and to eat {+dish}.",
        "2| {hero.He} liked {hobby.ing} even more than {hobby2.ing}.",
        "2| {hero.His} favorite thing to do was {hobby.ing}, and {hero.his} favorite food was {+dish}.",
        "2| {hero.He} was very good at {hobby.ing}, but not so good at {hobby2.ing}.",
        "2| {hero.He} always wore {+color.a} {+clothes}, even when it was time to {hobby}.",
        "2| Every {+weekday}, {hero.he} put on {hero.his} {+color} {+clothes} and went out to {hobby}.",
        "1| Nobody was better at {hobby.ing} than {hero.he} was, and nobody ate more {+dish}.",
        "1| On {weather} days, {hero.he} loved to {hobby}, and on {weather2} days to {hobby2}.",
        "1| With {hero.his} {+color} {+clothes} on, {hero.he} liked to {hobby}.",
    ),
    "meet": (
        "2| {hero.His} best friend was {friend}, who lived {+where} and always {+quirk}.",
        "3| {hero.He} had {+relation.a} named {friend}, and they often {play} on {+weekday}.",
        "1| {hero.He} was a good friend of {friend}, who lived {+where}.",
        "2| {friend} was {hero.his} {+relation}, and every {+weekday} they {play}.",
        "2| {hero.He} and {hero.his} {+relation} {friend} often {play}.",
        "1| One of {hero.his} friends was {friend}, who always {+quirk}.",
        "1| {hero.His} {+relation} {friend} always {+quirk}.",
    ),
    "time": (
        "3| One {+weather} {+daypart},",
        "2| One {+weather} day,",
        "2| One {+daypart} in {+season},",
        "2| On {+weekday} {+daypart},",
        "2| One day after {+meal},",
        "1| Early one {+weekday},",
        "1| One day last {+season},",
    ),
    "glad": (
        "2| {hero} was so {+glad} that {hero.he} {+joy}.",
        "2| {hero} felt very {+glad} and {+joy}.",
        "2| They both felt {+glad} and {+way} home together.",
        "1| {hero} and {friend} were {+glad} and gave each other a hug.",
        "1| {friend} clapped, and {hero} {+joy}.",
        '1| "I am so {+glad}!" said {hero}.',
    ),
    "offer": (
        '2| "I will help you," {+said} {friend} {+manner}.',
        '2| "Do not be {+sad}," {friend} {+said} {+manner}. "We can do it together."',
        '1| "I have an idea," {+said} {friend} {+manner}.',
        "1| {friend} smiled {+manner} and stayed to help.",
        '1| "Two are better than one," {friend} {+said} {+manner}.',
        "1| {friend} thought for a moment and smiled {+manner}.",
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
        "2| That evening, {adult} gave them {+treat} and a big hug.",
        "3| That night, the {trait} {kind} fell asleep and dreamed of {+dream}.",
        "2| After that, they {+way} home and had some {+treat} and {+snack.a}.",
        "1| Before bedtime, {adult} brought {+treat} for both of them.",
        "1| In the evening, {hero} talked about the day with {adult} and later dreamed of {+dream}.",
        "1| The {trait} {kind} and {friend} stayed friends for many years.",
        "2| And the next {+weekday}, they {play} as always.",
        '1| "What {+nice.a} day," {+said} {friend}, and {hero} agreed.',
    ),
}
