"""General knowledge: the tables of facts behind `general`.

Symbols of elements that are also a word or the end of one (He, I, S) are left out, since a text that
holds such a word would seem to hold the fact.
"""

from tools.demo_data.blocks import read_blocks

_EU, _AS, _AF, _SA, _NA = "Europe", "Asia", "Africa", "South America", "North America"
COUNTRIES = (
    ("France", "Paris", _EU, "euro"), ("Germany", "Berlin", _EU, "euro"), ("Italy", "Rome", _EU, "euro"),
    ("Spain", "Madrid", _EU, "euro"), ("Portugal", "Lisbon", _EU, "euro"),
    ("Greece", "Athens", _EU, "euro"), ("Ireland", "Dublin", _EU, "euro"),
    ("Finland", "Helsinki", _EU, "euro"), ("Austria", "Vienna", _EU, "euro"),
    ("Belgium", "Brussels", _EU, "euro"), ("Sweden", "Stockholm", _EU, "krona"),
    ("Norway", "Oslo", _EU, "krone"), ("Denmark", "Copenhagen", _EU, "krone"),
    ("Poland", "Warsaw", _EU, "zloty"), ("Hungary", "Budapest", _EU, "forint"),
    ("Switzerland", "Bern", _EU, "franc"), ("Iceland", "Reykjavik", _EU, "krona"),
    ("Ukraine", "Kyiv", _EU, "hryvnia"), ("Japan", "Tokyo", _AS, "yen"), ("China", "Beijing", _AS, "yuan"),
    ("India", "New Delhi", _AS, "rupee"), ("Thailand", "Bangkok", _AS, "baht"),
    ("Vietnam", "Hanoi", _AS, "dong"), ("Nepal", "Kathmandu", _AS, "rupee"),
    ("Pakistan", "Islamabad", _AS, "rupee"), ("Iraq", "Baghdad", _AS, "dinar"),
    ("Iran", "Tehran", _AS, "rial"), ("Saudi Arabia", "Riyadh", _AS, "riyal"),
    ("South Korea", "Seoul", _AS, "won"), ("Egypt", "Cairo", _AF, "pound"),
    ("Kenya", "Nairobi", _AF, "shilling"), ("Ghana", "Accra", _AF, "cedi"),
    ("Ethiopia", "Addis Ababa", _AF, "birr"), ("Morocco", "Rabat", _AF, "dirham"),
    ("Nigeria", "Abuja", _AF, "naira"), ("Brazil", "Brasilia", _SA, "real"),
    ("Argentina", "Buenos Aires", _SA, "peso"), ("Chile", "Santiago", _SA, "peso"),
    ("Peru", "Lima", _SA, "sol"), ("Uruguay", "Montevideo", _SA, "peso"),
    ("Canada", "Ottawa", _NA, "dollar"), ("Cuba", "Havana", _NA, "peso"),
    ("Jamaica", "Kingston", _NA, "dollar"),
)  # fmt: skip
ELEMENTS = (
    ("hydrogen", "H", 1, "the lightest of all gases"),
    ("lithium", "Li", 3, "a light metal found in batteries"),
    ("carbon", "C", 6, "the main substance of coal and diamond"),
    ("nitrogen", "N", 7, "the gas that makes up most of the air"),
    ("oxygen", "O", 8, "the gas that animals need to breathe"),
    ("neon", "Ne", 10, "a gas that glows in bright signs"), ("sodium", "Na", 11, "a part of table salt"),
    ("magnesium", "Mg", 12, "a light metal that burns brightly"),
    ("aluminium", "Al", 13, "a light metal used for cans and aircraft"),
    ("silicon", "Si", 14, "the main material of computer chips"),
    ("chlorine", "Cl", 17, "a greenish gas that disinfects water"),
    ("potassium", "K", 19, "a soft metal that plants need as a salt"),
    ("calcium", "Ca", 20, "a part of bones and chalk"), ("iron", "Fe", 26, "the main metal in steel"),
    ("copper", "Cu", 29, "a reddish metal used for wires"),
    ("zinc", "Zn", 30, "a metal that protects steel from rust"),
    ("silver", "Ag", 47, "a shiny metal used for jewellery"),
    ("tin", "Sn", 50, "a soft metal used in solder"),
    ("gold", "Au", 79, "a yellow metal that does not rust"),
    ("lead", "Pb", 82, "a heavy and poisonous metal"),
    ("mercury", "Hg", 80, "a metal that is liquid at room temperature"),
    ("uranium", "U", 92, "a heavy metal used in nuclear power plants"),
)  # fmt: skip
BOOKS = (
    ("Don Quixote", "Miguel de Cervantes", 1605), ("Robinson Crusoe", "Daniel Defoe", 1719),
    ("Gulliver's Travels", "Jonathan Swift", 1726), ("Pride and Prejudice", "Jane Austen", 1813),
    ("Frankenstein", "Mary Shelley", 1818), ("Oliver Twist", "Charles Dickens", 1838),
    ("The Count of Monte Cristo", "Alexandre Dumas", 1844), ("Jane Eyre", "Charlotte Brontë", 1847),
    ("Moby-Dick", "Herman Melville", 1851), ("Les Misérables", "Victor Hugo", 1862),
    ("Alice's Adventures in Wonderland", "Lewis Carroll", 1865),
    ("Crime and Punishment", "Fyodor Dostoevsky", 1866), ("War and Peace", "Leo Tolstoy", 1869),
    ("Treasure Island", "Robert Louis Stevenson", 1883), ("Dracula", "Bram Stoker", 1897),
    ("The War of the Worlds", "H. G. Wells", 1898), ("The Call of the Wild", "Jack London", 1903),
    ("The Great Gatsby", "F. Scott Fitzgerald", 1925), ("Brave New World", "Aldous Huxley", 1932),
    ("The Hobbit", "J. R. R. Tolkien", 1937), ("The Old Man and the Sea", "Ernest Hemingway", 1952),
    ("To Kill a Mockingbird", "Harper Lee", 1960),
)  # fmt: skip
ANIMALS = (
    ("dog", "puppy", "mammals", "mostly on meat"), ("cat", "kitten", "mammals", "on meat"),
    ("cow", "calf", "mammals", "on grass"), ("horse", "foal", "mammals", "on grass and hay"),
    ("sheep", "lamb", "mammals", "on grass and herbs"),
    ("pig", "piglet", "mammals", "on plants and small animals"),
    ("goat", "kid", "mammals", "on leaves and grass"),
    ("bear", "cub", "mammals", "on plants and animals alike"),
    ("kangaroo", "joey", "mammals", "on grass and leaves"),
    ("deer", "fawn", "mammals", "on leaves and shoots"),
    ("swan", "cygnet", "birds", "mostly on water plants"),
    ("duck", "duckling", "birds", "on water plants and insects"),
    ("goose", "gosling", "birds", "mostly on grass"),
    ("eagle", "eaglet", "birds", "on fish and other animals"),
    ("owl", "owlet", "birds", "on mice and other small animals"),
    ("frog", "tadpole", "amphibians", "on insects once it is grown"),
)  # fmt: skip

# What happened, the year, and a sentence to go with it.
EVENTS = (
    ("Columbus reached America", 1492, "He had sailed west from Spain with three ships."),
    ("the French Revolution began", 1789, "The storming of the Bastille in Paris is its best known scene."),
    ("the United States declared independence", 1776, "Until then they had been British colonies."),
    ("the First World War began", 1914, "It lasted for four years and cost millions of lives."),
    ("the First World War ended", 1918, "The fighting stopped in November of that year."),
    ("the Second World War began in Europe", 1939, "It started with the attack on Poland."),
    ("the Second World War ended", 1945, "The United Nations were founded soon after it."),
    ("the Berlin Wall fell", 1989, "Germany became one country again in the next year."),
    ("the Berlin Wall went up", 1961, "It divided the city for 28 years."),
    ("people first walked on the Moon", 1969, "Neil Armstrong and Buzz Aldrin landed there with Apollo 11."),
    ("Yuri Gagarin flew into space", 1961, "He was the first human to do so."),
    ("Sputnik went into orbit", 1957,
     "The satellite was built by the Soviet Union and was the first of all."),
    ("the Titanic sank", 1912, "The ship had struck an iceberg in the Atlantic Ocean."),
    ("the Wright brothers made their first powered flight", 1903,
     "It took place at Kitty Hawk and lasted twelve seconds."),
    ("the Great Fire of London happened", 1666, "It started in a bakery."),
    ("the Eiffel Tower opened", 1889, "It was the gate to a world fair in Paris."),
    ("the Suez Canal opened", 1869, "It joins the Mediterranean Sea with the Red Sea."),
    ("the Panama Canal opened", 1914, "It joins the Atlantic with the Pacific Ocean."),
    ("the Soviet Union broke up", 1991, "Fifteen independent states came out of it."),
    ("Nelson Mandela became president", 1994, "He was the first Black head of state of South Africa."),
    ("the first modern Olympic Games took place", 1896, "They were held in Athens."),
    ("the Battle of Hastings took place", 1066, "William of Normandy won it and became king of England."),
    ("the Battle of Waterloo took place", 1815, "It ended the rule of Napoleon."),
    ("Alexander Fleming discovered penicillin", 1928,
     "A mould had killed the bacteria in one of his dishes."),
)  # fmt: skip

# Three questions and an answer to any of them; the fact stands in brackets.
SINGLE = read_blocks("""
Which planet is closest to the Sun? | Name the innermost planet. | What planet circles the Sun fastest?
> The planet closest to the Sun is [Mercury]. It is the smallest planet and goes around the Sun in 88 days.

Which is the largest planet? | What is the biggest planet of the solar system? |
Which planet beats all others in size?
> The largest planet of the solar system is [Jupiter]. It is a giant ball of gas and has a great red spot.

Which planet is called the red planet? | What planet owes its colour to rust? |
Name the fourth planet from the Sun.
> The red planet is [Mars], the fourth one from the Sun. Iron oxide, or rust, gives its soil the colour.

Which planet is famous for its wide rings? | What is the sixth planet from the Sun? |
Name the second largest planet.
> It is [Saturn], the sixth planet from the Sun and the second largest. Its wide rings are made mostly of
ice.

Which planet is farthest from the Sun? | Name the outermost planet. | What is the eighth planet called?
> The eighth and outermost planet is [Neptune]. It is a cold, blue giant and needs 165 years for one orbit.

Which planet is the hottest? | What is the second planet from the Sun? |
Name the planet that shines brightest at night.
> It is [Venus], the second planet from the Sun. Its thick clouds shine brightly and make it the hottest
planet.

What galaxy do we live in? | Name the galaxy that holds the Sun. |
Which galaxy is home to the solar system?
> The Sun and its planets belong to a galaxy called the [Milky Way]. It holds more than 100 billion stars.

How many continents are there? | Into what number of continents is land usually divided? |
Count the continents for me.
> By the usual count there are [seven] continents. Asia is the largest of them, and Australia is the
smallest.

Which ocean is the largest? | Name the biggest ocean. | What ocean lies between Asia and America?
> The largest ocean is the [Pacific]. It lies between Asia and America and covers about a third of the
Earth.

What is the highest mountain on Earth? | Which peak is the world's tallest? |
Name the top of the Himalayas.
> The highest mountain on Earth is Mount [Everest]. It stands in the Himalayas and rises 8849 metres above
the sea.

Which is the largest hot desert? | What desert covers most of northern Africa? |
Name Africa's biggest desert.
> The largest hot desert is the [Sahara]. It covers most of northern Africa and is about as large as China.

Which river flows through Egypt? | What is the longest river in Africa? |
Name the river that passes Cairo.
> The longest river in Africa is the [Nile]. It flows north through Egypt, passes Cairo and ends in the
Mediterranean Sea.

Which river carries the most water? | What is the great river of Brazil? |
Name the largest river of South America.
> The river that carries the most water is the [Amazon]. It crosses South America from Peru through Brazil
to the Atlantic.

Which river runs through Vienna and Budapest? |
Name the river that ends in the Black Sea after ten countries. |
What is the second longest river of Europe?
> It is the [Danube], the second longest river of Europe. It touches ten countries and ends in the Black
Sea.

Which country has the largest area? | What is the biggest country in the world? |
Name the country that spans eleven time zones.
> The country with the largest area is [Russia]. It spans eleven time zones and lies in both Europe and
Asia.

Which is the smallest country? | What state lies wholly inside Rome? | Name the home of the Pope.
> The smallest country in the world is [Vatican] City. It lies inside Rome and is the home of the Pope.

Who painted the Mona Lisa? | Which artist made The Last Supper in Milan? |
Mona Lisa: whose painting is it?
> The Mona Lisa and The Last Supper are works of [Leonardo] da Vinci. He was an Italian painter and
engineer.

Who painted The Starry Night? | Which painter is known for his sunflowers? |
The Starry Night: who is the artist?
> The Starry Night and the famous sunflowers were painted by Vincent [van Gogh], a Dutch artist of the
nineteenth century.

Who painted Guernica? | Guernica: which artist made it? |
Which Spaniard founded Cubism with Georges Braque?
> Guernica was painted by Pablo [Picasso] in 1937. He was a Spanish artist and a founder of Cubism.

Who composed The Magic Flute? | Which composer was born in Salzburg in 1756? |
The Magic Flute: whose opera is it?
> The Magic Flute is an opera by Wolfgang Amadeus [Mozart]. The composer was born in Salzburg in 1756.

Who wrote the Moonlight Sonata? | Which composer grew deaf but wrote nine symphonies? |
Who set the Ode to Joy to music?
> It was Ludwig van [Beethoven], a German composer. He wrote the Moonlight Sonata and nine symphonies,
though he grew deaf.

Who wrote Romeo and Juliet? | Whose play is Hamlet? | Which English poet wrote Macbeth?
> Romeo and Juliet, Hamlet and Macbeth are plays by William [Shakespeare], an English poet who lived from
1564 to 1616.

Who proposed the theory of relativity? | Which physicist wrote E = mc^2? | Relativity: whose theory is it?
> The theory of relativity was proposed by Albert [Einstein]. He was born in Germany and won the Nobel Prize
in 1921.

Who described the law of gravity? | Which physicist published the Principia? |
Who stated three laws of motion?
> The laws of motion and of gravity were described by Isaac [Newton]. He published them in the Principia in
1687.

Who wrote On the Origin of Species? | Which naturalist sailed on the Beagle? |
Who explained evolution by natural selection?
> Evolution by natural selection was explained by Charles [Darwin]. After his voyage on the Beagle he wrote
On the Origin of Species.

Who discovered radium? | Which woman won two Nobel Prizes in different sciences? |
Who named the element polonium after her homeland?
> Radium and polonium were discovered by [Marie Curie] with her husband Pierre. She won Nobel Prizes in
physics and chemistry.

Who patented the telephone in 1876? | Which inventor's name goes with the first telephone patent? |
Telephone: who held the patent?
> The patent for the telephone was given to Alexander Graham [Bell] in 1876. He was born in Scotland.

Who introduced printing with movable type to Europe? | Which printer of Mainz made a famous Bible? |
Who built Europe's first printing press?
> Printing with movable type was brought to Europe by Johannes [Gutenberg]. His press in Mainz printed a
famous Bible.

At what temperature does water boil? | How hot is boiling water at sea level? |
Give the boiling point of water in Celsius.
> At sea level water boils at [100] degrees Celsius. On high mountains, where the air is thinner, it boils
at less.

How fast does light travel? | What is the speed of light in km per second? |
In one second, how far does light go?
> In empty space light travels at about [300,000] kilometres per second. From the Sun it needs eight minutes
to reach the Earth.

How many bones does an adult have? | What number of bones is in the human skeleton? |
Count the bones of a grown person.
> The skeleton of an adult has [206] bones. A newborn child has more, since some of them join later.

Which is the largest organ of the body? | What human organ covers the whole body? |
Name the organ that keeps water in and germs out.
> The largest organ of the human body is the [skin]. It keeps water in and germs out, and feels touch.

Which organ pumps blood? | What muscle beats all life long? |
Name the organ with four chambers that moves blood.
> Blood is pumped by the [heart], a muscle with four chambers. It beats about 70 times a minute at rest.

Which gas do plants take in for photosynthesis? | From what gas do leaves make sugar? |
What do plants absorb from the air to grow?
> For photosynthesis plants take in [carbon dioxide]. With water and sunlight they turn it into sugar and
release oxygen.

How many sides does a hexagon have? | What number of corners has a hexagon? |
Count the edges of a hexagon.
> A hexagon has [six] sides and as many corners. The cells of a honeycomb are a well known example.

How many sides does an octagon have? | What number of corners has an octagon? |
Count the edges of an octagon.
> An octagon has [eight] sides and as many corners. In many countries a stop sign has this shape.

How many degrees has a right angle? | What is the size of a square's corner? | How wide is a right angle?
> A right angle measures [90] degrees, a quarter of a full turn. Every corner of a square is one.

How many players of one team are on a football pitch? | What is the size of a soccer team? |
Count the soccer players of one side.
> A football team has [eleven] players on the pitch, one of whom is the goalkeeper. A match lasts 90
minutes.

Which language has the most native speakers? | What is the official language of China? |
Name the main language of Beijing.
> The language with the most native speakers is [Mandarin] Chinese. It is the official language of China and
is written with characters.

What language do people speak in Brazil? | Name the official language of Brazil. |
Which language came to Brazil with its colonists?
> The official language of Brazil is [Portuguese]. It came with the colonists from Portugal in the sixteenth
century.
""")
