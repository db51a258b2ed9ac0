"""The 200 concepts of the embedded model: an emoji, its plain English name, and synonyms.

The list order is the order of the sprites in ``data/sprites.png``; append only, never reorder.
"""

from typing import NamedTuple


class Concept(NamedTuple):
    """A concept that can be drawn."""

    emoji: str
    name: str
    aliases: tuple[str, ...] = ()


# One line per concept: emoji, name, then optional aliases, separated by commas.
_TABLE = """
🐶,dog,puppy,dog face
🐱,cat,kitten,cat face
🐭,mouse,mouse face
🐰,rabbit,bunny
🦊,fox
🐻,bear,brown bear
🐼,panda,panda bear
🐨,koala
🐯,tiger
🦁,lion
🐮,cow
🐷,pig,piglet
🐸,frog
🐵,monkey
🐔,chicken,hen
🐧,penguin
🦆,duck
🦅,eagle
🦉,owl
🦇,bat
🐴,horse,pony
🐝,bee,honeybee
🐛,caterpillar,green worm
🦋,butterfly
🐌,snail
🐞,ladybug,lady beetle
🐜,ant
🦂,scorpion
🐢,turtle,tortoise
🐍,snake
🐙,octopus
🦀,crab
🐡,pufferfish,blowfish
🐠,tropical fish,fish
🐬,dolphin
🐳,whale
🦈,shark
🐊,crocodile,alligator
🦓,zebra
🦍,gorilla
🐘,elephant
🐪,camel
🦒,giraffe
🦘,kangaroo
🐑,sheep
🦙,llama
🦩,flamingo
🦚,peacock
🦜,parrot
🐿️,squirrel,chipmunk
🕷️,spider
🦖,dinosaur,tyrannosaurus
🐉,dragon
🍎,red apple,apple
🍐,pear
🍊,orange,tangerine
🍌,banana
🍉,watermelon
🍇,grapes,bunch of grapes
🍓,strawberry
🍒,cherries,cherry
🍑,peach
🍍,pineapple
🥥,coconut
🥝,kiwi
🍆,eggplant,aubergine
🥑,avocado
🥦,broccoli
🌶️,chili pepper,hot pepper
🌽,corn,ear of corn
🥕,carrot
🥐,croissant
🥨,pretzel
🧀,cheese
🍳,fried egg,egg
🥞,pancakes
🍔,hamburger,burger
🍟,french fries,fries
🍕,pizza,slice of pizza
🌭,hot dog
🌮,taco
🍣,sushi
🍦,ice cream
🍩,donut,doughnut
🍪,cookie,biscuit
🎂,birthday cake,cake
🍫,chocolate bar,chocolate
🍭,lollipop
🍿,popcorn
🍷,wine glass,glass of wine
🍺,beer mug,beer
🍄,mushroom
🌵,cactus
🌴,palm tree
🌲,evergreen tree,fir tree
🌻,sunflower
🌹,rose
🌷,tulip
🍁,maple leaf
🍀,four leaf clover,clover
🌸,cherry blossom
🚗,red car,car
🚕,taxi,cab
🚌,bus
🚒,fire engine,fire truck
🚑,ambulance
🚜,tractor
🚲,bicycle,bike
🛵,motor scooter,scooter
🚂,steam locomotive,train
✈️,airplane,plane
🚁,helicopter
🚀,rocket
⛵,sailboat,sailing boat
🚢,ship
🛸,flying saucer,ufo
🎈,balloon
🪂,parachute
🔨,hammer
🔧,wrench,spanner
✂️,scissors,pair of scissors
🔑,key
🔒,lock,padlock
💡,light bulb,lamp
🧲,magnet
☂️,umbrella
⏰,alarm clock,clock
⏳,hourglass,sand clock
📷,camera
📺,television,tv
☎️,telephone,phone
💻,laptop,computer
🔋,battery
📕,red book,book
✏️,pencil
🎁,gift,present
🧸,teddy bear
👑,crown
💍,ring,diamond ring
👓,glasses,eyeglasses
🎩,top hat
👟,sneaker,running shoe
👠,high heel
👕,shirt,blue shirt
👗,dress
🎒,backpack
👜,handbag,purse
⚓,anchor
💣,bomb
🔬,microscope
🔭,telescope
🏆,trophy
🥇,gold medal,medal
🔔,bell
🪓,axe
🏹,bow and arrow
🧹,broom
🧯,fire extinguisher
⚽,soccer ball
🏀,basketball
🏈,american football,football
🎾,tennis racket,tennis
🎳,bowling pins,bowling
🏓,ping pong paddle,table tennis
🥊,boxing glove
🎯,dart board,target
🛹,skateboard
🪁,kite
🎸,guitar
🎻,violin,fiddle
🎺,trumpet
🎷,saxophone
🥁,drum
🎹,piano,musical keyboard
🪗,accordion
🎤,microphone
🎧,headphones
☀️,sun
🌙,crescent moon,moon
⭐,star
🌈,rainbow
❄️,snowflake
🔥,fire,flame
🌋,volcano
🌍,globe,earth
🤖,robot
👻,ghost
💀,skull
👽,alien
🎃,jack o lantern,pumpkin
⛄,snowman
🤡,clown
🏠,house
🏰,castle
⛺,tent
🎡,ferris wheel
🎲,dice,die
🧩,puzzle piece
🎮,game controller,video game
🚦,traffic light
"""

CONCEPTS: tuple[Concept, ...] = tuple(
    Concept(emoji, name, tuple(aliases))
    for emoji, name, *aliases in (line.split(",") for line in _TABLE.split("\n") if line)
)
NAMES: tuple[str, ...] = tuple(concept.name for concept in CONCEPTS)
