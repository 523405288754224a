"""The plots of the embedded stories: goal, obstacle, help, way out and lesson.

Each plot is a rule of a few sentences; what is named at the beginning (toy, hiding place, animal,
promise) comes back at the end. See `stories_grammar` for the notation and `stories_frame` for the rules
that all plots share.
"""
# ruff: noqa: E501 (a template is one line)

PLOTS: dict[str, tuple[str, ...]] = {
    "plot": (
        "2| <lost_start> <lost_notice> <lost_search> <offer> <lost_found> <learned> <lost_lesson>",
        "2| <share_start> <share_ask> <share_no> <share_turn> <share_end> <learned> <share_lesson>",
        "2| <make_start> <make_trouble> <offer> <make_do> <make_gift> <learned> <make_lesson>",
        "2| <pet_start> <pet_worry> <pet_fail> <offer> <pet_free> <pet_end> <learned> <pet_lesson>",
        "2| <fear_start> <fear_say> <offer> <fear_try> <fear_end> <glad> <learned> <fear_lesson>",
        "1| <rain_start> <rain_sad> <offer> <rain_build> <rain_play> <learned> <rain_lesson>",
        "1| <race_start> <race_boast> <race_run> <race_win> <race_say> <learned> <race_lesson>",
        "1| <seed_start> <seed_wait> <seed_sad> <seed_advice> <seed_grow> <glad> <learned> <seed_lesson>",
        "1| <task_start> <task_lure> <task_think> <task_do> <task_end> <learned> <task_lesson>",
        "1| <break_start> <break_hide> <break_talk> <break_tell> <break_end> <learned> <break_lesson>",
        "1| <load_start> <load_fail> <offer> <load_push> <load_end> <learned> <load_lesson>",
    ),
    # A toy is put away, missed, looked for and found where it was put.
    "lost_start": (
        "2| <time> {hero} put {hero.his} {color} {toy} {spot} and went out to {+hobby}.",
        "1| <time> {hero} got {color.a} {toy} from {adult}. {hero.He} put it {spot} and ran off to {+hobby}.",
        "1| <time> {hero} had to tidy up, so {hero.he} left {hero.his} {color} {toy} {spot}. Then {hero.he} had {+snack.a}.",
    ),
    "lost_notice": (
        "2| Later, {hero.he} wanted to show the {toy} to {friend}, but {hero.he} could not find it.",
        "2| When {hero.he} came back, {hero.he} had forgotten where the {toy} was.",
        '1| "{+sigh}! Where is my {color} {toy}?" {hero.he} cried that evening.',
    ),
    "lost_search": (
        "2| {hero.He} looked {search} and {search2}, but there was no {toy}.",
        "1| First {hero.he} looked {search}, then {search2}. It was not there, and {hero.he} felt {+sad}.",
        "1| {friend} came to help, and they looked {search} and {search2}. They found only {+snack.a}.",
    ),
    "lost_found": (
        '2| They {+way} back and looked {spot}. "{+cheer}!" {hero} {+shouted}. There was the {color} {toy}!',
        '1| "Where did you have it last?" asked {friend}. And soon they found the {toy} {spot}.',
        '1| At last, {friend} saw something {color} {spot}. "{+cheer}! It is my {toy}!" {hero} {+shouted}.',
    ),
    "lost_lesson": (
        "good friends help you look.",
        "it is easier to find a thing when you stay calm.",
        "it is wise to remember where you put your things.",
        "two pairs of eyes see more than one.",
    ),
    # A toy that one child will not share.
    "share_start": (
        "2| <time> {hero} took {hero.his} new {color} {toy} to {+outing}.",
        "1| <time> {adult} gave {hero} {color.a} {toy}.",
        "1| <time> {hero} found {color.a} {toy} with {hero.his} name on it.",
    ),
    "share_ask": (
        '2| {friend} saw the {toy} and asked, "May I play with it, please?"',
        '1| "What {color.a} {toy}! Can I have a turn?" asked {friend}.',
        "1| {friend} wanted to play with the {toy}, too.",
    ),
    "share_no": (
        '2| "No, it is mine," said {hero}, and {friend} walked away and felt {+sad}.',
        "1| But {hero} held the {toy} tightly and shook {hero.his} head. {friend} looked {+sad}.",
        '1| "Not now," {hero} said, and turned around. {friend} sat down alone, {+sad} and quiet.',
    ),
    "share_turn": (
        "2| Soon {hero} noticed that playing alone was no fun.",
        '1| {adult} said {+manner}, "{toy.A} is more fun with a friend."',
        "1| Then {hero} saw that {friend} had brought {+snack.a} and was saving half of it for {hero.him}.",
    ),
    "share_end": (
        '2| So {hero} went to {friend} and said, "I am sorry. Let us play with the {toy} together."',
        "1| {hero} thought about it and gave the {color} {toy} to {friend} for a turn.",
        '1| "Here, you can go first," said {hero}, and gave {friend} the {toy}.',
    ),
    "share_lesson": (
        "sharing makes every game better.",
        "a toy is more fun when you share it.",
        "a friend is worth more than any toy.",
        "it feels good to give.",
    ),
    # Making a present, and something is missing.
    "make_start": (
        "2| <time> {hero} wanted to make {+nice.a} {made} for {adult}.",
        '1| <time> {hero} said, "Soon it is {adult.of} {+day}. I will make {+nice.a} {made}!"',
        "1| <time> {friend} and {hero} planned to surprise {adult} with {+nice.a} {made}.",
    ),
    "make_trouble": (
        "2| {hero.He} began to work, but there was no {material}.",
        '1| "{+sigh}! We have no {material} for the {made}," {hero.he} said.',
        "1| But the first {made} fell apart, because there was not enough {material}. {hero} felt {+sad}.",
    ),
    "make_do": (
        "2| {friend} {+way} home and came back with the {material}. They {work} until the {made} was done.",
        "1| They asked a neighbor for {material}. Then they {work} the whole {+daypart}.",
        "1| {friend} had some {material} in a bag. Together they {work}, and the {made} was even better.",
    ),
    "make_gift": (
        '2| When {adult} saw the {made}, everybody {+shouted}, "{+cheer}!"',
        '1| They gave the {made} to {adult}. "It is the best gift of all," said {adult}.',
        "1| {adult} loved the {made} and felt {+glad}.",
    ),
    "make_lesson": (
        "a gift made by hand comes from the heart.",
        "a good friend makes hard work easy.",
        "you should not give up when something is missing.",
        "making a gift is as nice as getting one.",
    ),
    # A small animal needs help.
    "pet_start": (
        "2| <time> {hero} and {friend} saw {pet_look.a} {pet} that was {trap}.",
        "1| <time> {hero} heard a sad cry. It was {pet_look.a} {pet}, and it was {trap}.",
        "1| <time> on the way to {+outing}, {hero} found {pet_look.a} {pet} that was {trap}.",
    ),
    "pet_worry": (
        '2| "{+sigh}! The {pet_look} {pet} is {trap}!" cried {hero}.',
        "1| The {pet_look} {pet} was crying and looked {+sad}.",
        '1| "We must help the {pet}," {hero.he} said, feeling {+sad}.',
    ),
    "pet_fail": (
        "2| {hero.He} tried to free it, but {hero.his} arms were too short.",
        "1| {hero} tried and tried, but {hero.he} could not reach the {pet} alone.",
        "1| At first the {pet} was scared and moved away from {hero.him}.",
    ),
    "pet_free": (
        "2| {friend} brought {tool.a}, and with the {tool} they set the {pet} free.",
        "1| They found {tool.a} and used it to help the {pet} out.",
        "1| {friend} spoke to the {pet} {+manner} while {hero} used {tool.a}. Soon the {pet} was free.",
    ),
    "pet_end": (
        "2| They gave the {pet} {+nibble.a} and took it back to its mother.",
        "1| The {pet} was hungry, so {hero} gave it {+nibble.a}. Its mother came and was {+glad}.",
        "1| From then on, the {pet} followed them everywhere and was {+glad}.",
    ),
    "pet_lesson": (
        "even the smallest ones need a friend.",
        "kindness is never wasted.",
        "you should help when somebody is in trouble.",
        "gentle hands can do great things.",
    ),
    # Being afraid, and one small step.
    "fear_start": (
        "2| But {hero} was afraid of {fear}.",
        "1| There was only one problem. {hero} was scared of {fear}.",
        "1| {hero} had a secret: {hero.he} was very afraid of {fear}.",
    ),
    "fear_say": (
        '2| <time> {friend} asked, "Why do you look so {+sad}?" Then {hero} told {friend} about {fear}.',
        "1| <time> {hero} began to think of {fear}, and {hero.his} knees began to shake.",
        '1| "I do not like {fear}," {hero.he} told {friend} in a small voice.',
    ),
    "fear_try": (
        "2| {friend} came along, and first they {step}.",
        "1| The next day, they {step}. It was not so bad.",
        "1| So {hero} and {friend} {step}, again and again.",
    ),
    "fear_end": (
        "2| Little by little, {hero} was not afraid of {fear} anymore.",
        '1| "{+cheer}! I did it! I am not scared of {fear} now," said {hero}.',
        "1| After a while, {hero} noticed that {fear} did not seem so scary.",
    ),
    "fear_lesson": (
        "being brave means trying even when you are scared.",
        "fears get smaller when you share them.",
        "one small step is a good start.",
        "it is all right to be afraid and to ask for help.",
    ),
    # Rain spoils the plan.
    "rain_start": (
        "2| <time> they wanted to go to {outing}, but it began to rain.",
        "1| <time> dark clouds came, just when {hero} and {friend} were ready to go to {outing}.",
        "1| <time> {adult} wanted to take them to {outing}, but the rain would not stop.",
    ),
    "rain_sad": (
        '2| "{+sigh}! Now we cannot go to {outing}," said {hero}, and felt {+sad}.',
        "1| {hero} looked out at the rain and felt {+sad}.",
        "1| {hero.He} watched the drops run down the glass and felt {+sad}.",
    ),
    "rain_build": (
        "2| They took {stuff} and built {+cozy.a} {shelter} in the middle of the room.",
        "1| {adult} gave them {stuff}, and soon there was {+cozy.a} {shelter}.",
        '1| "Let us make {+cozy.a} {shelter}!" {friend} said. They only needed {stuff}.',
    ),
    "rain_play": (
        "2| They sat in the {shelter}, ate {+snack.a} and forgot the rain.",
        "1| Inside the {shelter} they {+play} until they could go to {outing} after all.",
        "1| All {+daypart} they {+play} in the {shelter}, and {hero} was {+glad}.",
    ),
    "rain_lesson": (
        "a rainy day can be the best day.",
        "there is always something fun to do.",
        "a good idea is better than a sad face.",
        "plans may change, but friends stay.",
    ),
    # Slow and steady.
    "race_start": (
        "2| <time> there was {race.a}, and {hero} wanted to win the {prize}.",
        "1| <time> {adult} held {race.a}. The winner would get {prize.a}.",
        "1| <time> {hero} and {friend} entered {race.a} for {prize.a}.",
    ),
    "race_boast": (
        '2| "I am much faster than you," said {friend}. {hero} said nothing, but practiced every day.',
        "1| {friend} was very fast, but {hero} had practiced for {+wait}.",
        '1| "You are too slow for {race.a}," somebody laughed. {hero} felt {+sad}, but did not give up.',
    ),
    "race_run": (
        "2| In the {race}, {friend} was far ahead and stopped to {stop}. {hero} kept going, slow and steady.",
        "1| {friend} was so sure of the {prize} that it was time to {stop}. But {hero} went on and on.",
    ),
    "race_win": (
        "2| When {friend} saw {hero}, it was too late. {hero} won the {race} and got the {prize}!",
        "1| In the end, {hero} came in first and won the {prize}.",
        "1| {hero} crossed the line first, tired but {+glad}, and got the {prize}.",
    ),
    "race_say": (
        '2| "Next time I will not {stop}," {+said} {friend}, and they both laughed.',
        '1| "You earned the {prize}," {friend} said {+manner}.',
        "1| {friend} shook hands with {hero}, and {hero} shared {+snack.a} with {friend}.",
    ),
    "race_lesson": (
        "slow and steady wins the race.",
        "if you keep going, you can do it.",
        "practice is better than boasting.",
        "it is the last step that counts.",
    ),
    # Waiting for a plant.
    "seed_start": (
        "2| <time> {adult} gave {hero} {seed.a} seed.",
        "1| <time> {hero} planted {seed.a} seed in the garden.",
        "1| <time> {hero} and {friend} found {seed.a} seed and put it into a pot.",
    ),
    "seed_wait": (
        "2| {hero.He} gave it water every {+daypart} and waited for {wait}, but nothing came up.",
        '1| "When will the {seed} grow?" {hero.he} asked every {+daypart}. But after {wait} there was still only dirt.',
    ),
    "seed_sad": (
        '2| "{+sigh}! My {seed} will never grow," {hero.he} said.',
        "1| {hero} felt {+sad} and wanted to dig up the seed.",
        "1| {hero} was {+sad} and almost gave up.",
    ),
    "seed_advice": (
        '2| "You must be patient," said {friend} {+manner}. "Good things take time."',
        '1| {adult} said {+manner}, "Seeds need sun, water and time."',
        "1| But {friend} told {hero.him} to wait a little longer.",
    ),
    "seed_grow": (
        "2| Then one day, there was a tiny green tip! Soon the {seed} {grown}.",
        "1| After another {+daypart} of rain, the {seed} came up. In the end it {grown}.",
        "1| They waited together, and at last the {seed} grew. It {grown}!",
    ),
    "seed_lesson": (
        "good things need time.",
        "it is worth waiting.",
        "patience makes things grow.",
        "a little care every day works wonders.",
    ),
    # Keeping a promise.
    "task_start": (
        '2| <time> {adult} asked {hero} to {task}. "I promise," said {hero}.',
        "1| <time> {hero} promised {adult} to {task} before dinner.",
        '1| <time> {adult} was busy and said, "Please {task} today." {hero} gave {hero.his} word.',
    ),
    "task_lure": (
        '2| But on the way, {friend} came running. "{+cheer}! There is {lure.a} in town! Come with me!"',
        "1| Just then {friend} called from outside, because there was {lure.a} at the corner.",
        "1| But {friend} had heard of {lure.a} and wanted to go there at once.",
    ),
    "task_think": (
        "2| {hero} wanted to see it so much! But then {hero.he} thought of {hero.his} promise.",
        '1| "I would love to come, but I promised to {task}," said {hero}.',
        "1| {hero} took three steps and stopped. What about the promise?",
    ),
    "task_do": (
        "2| {friend} nodded and helped {hero} {task}, so it was done very soon.",
        '1| "First I will {task}, then I will come," {hero.he} said, and {friend} waited {+manner}.',
    ),
    "task_end": (
        "2| Afterwards they {+way} to see the {lure}, and they were just in time.",
        '1| {adult} was {+glad} and said, "You kept your promise. Now go and see the {lure}!"',
        "1| Then {adult} took both of them to see the {lure}, and everyone was {+glad}.",
    ),
    "task_lesson": (
        "a promise is a promise.",
        "work comes first and then comes fun.",
        "people trust you when you keep your word.",
        "it feels good to keep a promise.",
    ),
    # Something breaks, and the truth comes out.
    "break_start": (
        "2| <time> {hero} {mishap} and broke {adult.of} {breakable}.",
        "1| <time> {adult.of} {breakable} fell and broke, because {hero} {mishap}.",
    ),
    "break_hide": (
        '2| "{+sigh}!" {hero.he} said, and hid the pieces {spot}.',
        "1| {hero.He} was so afraid that {hero.he} put the broken pieces {spot} and told nobody.",
    ),
    "break_talk": (
        '2| {friend} saw it and said {+manner}, "You should tell the truth."',
        "1| All {+daypart} {hero.he} felt {+sad}. {friend} told {hero.him} to be honest.",
        '1| "Everybody makes mistakes," {friend} said {+manner}, "but you must not hide them."',
    ),
    "break_tell": (
        "2| So {hero} looked {spot}, picked up the pieces and told {adult} everything.",
        '1| At last {hero} went to {adult} and said, "I broke your {breakable}. The pieces are {spot}. I am sorry."',
    ),
    "break_end": (
        '2| "Thank you for being honest," {adult} said {+manner}. Together they fixed the {breakable} with glue.',
        "1| {adult} was not angry at all, and they mended the {breakable} together.",
        '1| {adult} gave {hero} a hug and said, "{breakable.A} can be fixed, but trust is precious."',
    ),
    "break_lesson": (
        "the truth is always best.",
        "telling the truth makes the heart light.",
        "a mistake is not so bad when you admit it.",
        "honest words make things right again.",
    ),
    # Too heavy for one.
    "load_start": (
        "2| <time> {+size.a} {load} was in the way and blocked {blocked}.",
        "1| <time> {hero} wanted to go to {+outing}, but {+size.a} {load} blocked {blocked}.",
        "1| <time> {adult} needed help, because {+size.a} {load} blocked {blocked}.",
    ),
    "load_fail": (
        "2| {hero} {push}, but the {load} did not move at all.",
        '1| "I can do it alone!" said {hero}. {hero.He} {push}, but nothing happened, and {hero.he} was {+sad}.',
        "1| {hero} {push}. {hero.His} face turned red, but the {load} stayed where it was.",
    ),
    "load_push": (
        '2| "One, two, three!" they counted and pushed together. Slowly the {load} began to roll away.',
        "1| {friend} brought {+lever.a}, and with it they moved the {load} together.",
        "1| They called {adult}, and the three of them pushed until the {load} moved.",
    ),
    "load_end": (
        '2| "{+cheer}!" {hero} {+shouted}. Nothing blocked {blocked} anymore.',
        "1| Soon everybody could use {blocked} again and was {+glad}.",
        "1| They put the {load} aside and sat down to share {+snack.a}.",
    ),
    "load_lesson": (
        "together you are strong.",
        "many hands make light work.",
        "it is all right to ask for help.",
        "a heavy job is lighter with a friend.",
    ),
}
