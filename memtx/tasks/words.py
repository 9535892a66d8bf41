"""Common English words and names for text tasks. No adjective, noun or verb is a person, place or thing in a story."""

from collections.abc import Sequence

ADJECTIVES: str = """able ancient angry bitter blunt bold brave brief bright broad calm careful clever cloudy coarse
cold cosy crisp curly dark deep dim dry dull dusty eager early empty faint fair famous fancy fast fierce firm flat fond
fresh frosty gentle giant glad golden grand grey handy happy harsh heavy hollow honest humble icy jolly keen kind large
late lazy light lively lonely loud loyal lucky mellow merry mild modest narrow neat nervous noble odd pale patient plain
polite proud quick quiet rapid rare ready rich rough round royal rusty salty sharp shiny short shy silent silver simple
sleepy slow smooth soft sour steady stiff strange strong subtle sweet swift tall tame tender thick thin tiny tired tough
vast warm wide wild wise witty young"""

NOUNS: str = """acorn anchor anvil arrow badge barrel basket beacon bell bench bird blanket boat bottle bridge brook
broom bucket button cabin candle canoe canyon castle cellar chain chest cliff clock cloud coat comet compass copper
coral cradle creek crown curtain desert diary drum dune eagle engine falcon feather fence ferry field flame flute forest
fountain fox gate ghost glacier glove grain hammer harbour harp hedge hill horn island ivory jacket jewel kettle key
kite ladder lake lamp lantern leaf ledger lemon letter lily lion locket magnet mantle maple marble market mast meadow
mirror mole moon mountain needle nest oak ocean orchard otter owl paddle palace paper parcel pearl pebble pencil pepper
pillar pine planet pocket pond quarry quilt raft raven ribbon river robin rocket rope saddle sail scarf shadow shell
shield ship shovel spoon spring star stone storm stove tent thread ticket tiger tower train trunk tunnel turtle valley
vase violin wagon walnut whale wheel whistle willow window wolf zebra"""

VERBS: str = """admire adopt arrange assist attach bake balance borrow bounce carry carve celebrate chase climb collect
compare compose count crawl dance deliver describe dig dive draw dream drift edit embrace enter examine expand explain
explore fetch float fold follow gather glide glow greet guard guess guide harvest hide hover imagine improve invent
invite join jump knit launch laugh learn lift linger listen measure mend mix murmur observe offer open paint pause plan
plant polish ponder pour practise prepare present protect publish pull push race reach read recall repair rescue rest
return ride roam row sail scatter search settle shape share shelter signal sketch skip smile solve stir study surprise
swim teach tie trade travel trust unfold visit wait walk wander warn wash watch wave weave whisper wonder write"""

FIRST_NAMES: str = """Ada Alan Albert Alice Amelia Anna Arthur Barbara Benjamin Bertha Carl Clara Daisy David Dorothy
Edgar Edith Edward Eleanor Elias Emma Eric Esther Ethan Eva Felix Flora Frances Frank George Grace Hannah Harold Helen
Henry Hugo Ida Irene Isaac Jacob James Jane Jasper Joan Joseph Julia Karl Kate Laura Leo Lewis Lucy Mabel Martha Martin
Maud Max Nancy Nathan Nina Nora Olive Oscar Otto Paul Peter Ralph Robert Rosa Ruth Samuel Sarah Simon Sophie Stella
Susan Thomas Ursula Vera Victor Violet Walter"""

LAST_NAMES: str = """Abbott Adams Archer Atkins Baker Barlow Bennett Bishop Brooks Burton Carter Chapman Clarke Collins
Cooper Dalton Dawson Dixon Draper Ellis Fisher Fletcher Foster Fowler Gardner Gibson Graham Grant Griffin Harper Harris
Hayes Holmes Howard Hughes Hunter Jackson Jenkins Kelly King Knight Lambert Lawson Marsh Mason Miller Mitchell Morgan
Morris Murray Nelson Newton Norton Osborne Palmer Parker Pearson Porter Potter Quinn Reed Reynolds Rhodes Rogers Russell
Sanders Saunders Shaw Spencer Stevens Taylor Thorne Tucker Turner Tyler Wade Walker Warner Watson Webb Weber Wells
Wheeler Woods Wright York"""

adjectives = ADJECTIVES.split()
nouns = NOUNS.split()
verbs = VERBS.split()
first_names = FIRST_NAMES.split()
last_names = LAST_NAMES.split()

GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."  # the usual haystack


def pick(rng, words: Sequence[str]) -> str:
    """Draw one of `words`."""
    return words[int(rng.integers(len(words)))]


def insert(hay: list[str], positions, lines: list[str]) -> list[str]:
    """Insert `lines` in order into `hay`: line i goes before hay[positions[i]]. `positions` must be sorted."""
    out, taken = [], 0
    for position, line in zip(positions, lines, strict=True):
        out += [*hay[taken:position], line]
        taken = position
    return out + hay[taken:]
