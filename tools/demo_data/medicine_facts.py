"""Medicine: the tables behind `medicine`. Widely taught first aid and nutrition; no medical advice."""

from tools.demo_data.blocks import read_blocks

# Nutrient, what it does, sources, and what a long lack brings, each with its key word. Key words avoid terms
# that British and American texts spell apart.
NUTRIENTS = (
    ("vitamin A", "keeps the eyes and the skin healthy", "eyes",
     "carrots, sweet potatoes and liver", "carrots", "night blindness", "blindness"),
    ("vitamin B1", "helps the body to turn food into energy", "energy",
     "whole grains, beans and pork", "whole grains", "beriberi", "beriberi"),
    ("vitamin B3", "helps cells to draw energy from food", "energy",
     "poultry, fish and peanuts", "poultry", "pellagra", "pellagra"),
    ("vitamin B12", "keeps nerves healthy and helps to make red blood cells", "red blood cells",
     "meat, fish, eggs and milk", "meat", "tiredness and numb hands", "tiredness"),
    ("folate", "helps to make new cells, also in an unborn child", "cells",
     "leafy greens, beans and oranges", "leafy greens", "tiredness and a sore mouth", "tiredness"),
    ("vitamin C", "helps wounds to heal and the gut to take up iron", "wounds",
     "citrus fruit, peppers and berries", "citrus", "scurvy", "scurvy"),
    ("vitamin D", "helps the body to take up calcium for the bones", "calcium",
     "sunlight, oily fish and eggs", "sunlight", "rickets in children", "rickets"),
    ("vitamin E", "protects cells from damage", "cells",
     "nuts, seeds and vegetable oils", "nuts", "nerve damage", "nerve"),
    ("vitamin K", "helps blood to clot", "clot",
     "spinach, kale and broccoli", "spinach", "bleeding that is hard to stop", "bleeding"),
    ("calcium", "builds bones and teeth", "bones",
     "milk, cheese and other dairy foods", "milk", "brittle bones", "brittle"),
    ("iron", "lets the blood carry oxygen", "oxygen",
     "red meat, lentils and beans", "red meat", "tiredness and pale skin", "tiredness"),
    ("iodine", "is what the thyroid needs to make its hormones", "thyroid",
     "sea fish and iodised salt", "sea fish", "a swelling at the neck", "neck"),
    ("zinc", "supports the immune system", "immune system",
     "meat, shellfish and nuts", "meat", "slow healing and more infections", "infections"),
    ("magnesium", "helps muscles and nerves to work", "muscles",
     "nuts, seeds and whole grains", "nuts", "muscle cramps", "cramps"),
    ("potassium", "keeps blood pressure and heartbeat in order", "blood pressure",
     "bananas, potatoes and beans", "bananas", "weak muscles", "weak"),
    ("protein", "builds and repairs muscles", "muscles",
     "fish, eggs, beans and lean meat", "eggs", "a loss of muscle", "muscle"),
    ("dietary fibre", "keeps the bowels moving", "bowels",
     "whole grains, fruit, vegetables and beans", "whole grains", "constipation", "constipation"),
    ("omega-3 fat", "supports the heart and the brain", "heart",
     "salmon, mackerel, walnuts and flaxseed", "salmon", "dry skin", "dry skin"),
    ("fluoride", "protects the teeth from acid", "teeth",
     "toothpaste, tea and treated tap water", "toothpaste", "tooth decay", "decay"),
)  # fmt: skip

# A subject, two questions about it, and an answer to any question about it; the facts stand in brackets.
ADVICE = read_blocks("""
a fresh burn | I burned my hand on the stove. What now? | How should scalded skin be cooled?
> Please hold the burn under cool [running water] for [20 minutes] and take off rings early. Cover it
loosely, and use no ice or butter. A large, deep or blistered burn should be seen by a doctor.

a nosebleed | My nose is bleeding. How do I stop it? | Should one lean back when the nose bleeds?
> Sit upright, lean [forward] and [pinch] the soft part of the nose for 10 to 15 minutes while you breathe
through the mouth. If it has not stopped after half an hour, please get medical help.

a small cut | I cut my finger while cooking. What should I do? | How is a minor wound cleaned?
> Rinse the cut gently under [clean water], press a clean cloth on it until it stops bleeding, and cover it
with a [plaster]. See a doctor if it is deep, gapes or becomes red and hot.

heavy bleeding | Someone's arm is bleeding badly. What comes first? | How can blood loss be slowed?
> Press firmly on the wound with a clean cloth and do not let go. Ask someone to call an [ambulance], keep
the person warm and lying down, and put another cloth on top if blood comes through.

a bee sting | A bee stung my son. How do I help him? | How does one get a stinger out?
> [Scrape] the sting out quickly, wash the skin and hold a [cold pack] on it for ten minutes. If the face
swells or breathing becomes hard, call an ambulance at once, since this can be a severe allergy.

a tick bite | How do I get a tick out of my leg? | What is the right way to remove ticks?
> Grip the tick close to the skin with fine [tweezers], pull it straight out slowly and clean the spot.
Watch it for some weeks, and see a doctor if a spreading [rash] or fever appears.

a sprained ankle | I twisted my ankle. What helps? | How is a sprain treated in the first two days?
> [Rest] the ankle, cool it with wrapped [ice] for up to 20 minutes at a time, bandage it lightly and
[raise] the leg. If you cannot put weight on it, please have it checked.

a broken bone | I think her arm is broken. What can I do? | How do I help someone with a fracture?
> Keep the injured part [still] and support it with a cushion or a [sling], without trying to straighten it.
Call for medical help, and cover any open wound with a clean cloth.

fainting | A woman beside me passed out. What do I do? | How do you help a person who feels faint?
> Lay the person on the back and raise the [legs] a little, loosen tight clothes and let in [fresh air]. If
she or he does not wake within a minute, call an ambulance and check the breathing.

an epileptic seizure | Someone is having a fit. How can I help? | What must one not do in a seizure?
> Move hard things away, put something soft under the head and time the seizure, but do not hold the person
down or put anything in the [mouth]. Call an ambulance if it lasts longer than [five minutes].

a stroke | How can I tell that someone has a stroke? | Her face droops on one side. Is that an emergency?
> Look at three signs: a drooping face, a weak arm and slurred [speech]. If you see even one of them, please
call an [ambulance] at once and note the time, because every minute counts.

a heart attack | My father has a crushing pain in his chest. What now? | What are signs of a heart attack?
> Pressure or pain in the chest that spreads to arm, jaw or back, with sweating, may be a heart attack. Call
an [ambulance] right away and let the person sit down and rest.

resuscitation | A man does not breathe. How do I do CPR? | How fast should one press in CPR?
> Call an ambulance, then push hard and fast in the middle of the [chest], [100 to 120] times a minute and
about five centimetres deep. Go on until help arrives, and send someone for a defibrillator.

choking | My friend chokes on food and cannot speak. Help! |
Food is stuck in someone's throat. What is done?
> If the person cannot cough or speak, give up to five firm blows between the [shoulder blades], then up to
five [abdominal thrusts]. Keep changing between them, and call an ambulance if it stays stuck.

a swallowed poison | My child drank some cleaner. What do I do? | Should one vomit after taking in poison?
> Call the poison centre or an ambulance at once and keep the [package] at hand. Please do not make the
child throw up, and give nothing to eat or drink unless you are told to.

a severe allergic reaction | Her lips swell after eating nuts. What now? | How is anaphylaxis treated?
> Use the [adrenaline] pen in the outer thigh if there is one and call an [ambulance] at once. Let the
person lie down with raised legs, or sit up if breathing is hard.

an asthma attack | My sister wheezes and cannot catch her breath. What helps? | How does one calm asthma?
> Help the person to sit [upright], stay calm and use the blue reliever [inhaler] as prescribed. If it does
not get better within minutes, or speaking is hard, please call an ambulance.

low blood sugar | My diabetic friend is shaky and sweats. What do I give? |
How do you treat hypoglycaemia?
> If the person is awake, give about 15 grams of fast carbohydrate, such as [juice] or glucose tablets, and
check again after [15 minutes]. Never pour drinks into someone who is unconscious; call an ambulance.

heatstroke | He is hot, confused and no longer sweats. What do I do? | How is overheating handled?
> This is an emergency, so call an ambulance. Meanwhile bring the person into the [shade], take off extra
clothes and [cool] the skin with water and a fan until help comes.

hypothermia | A hiker is shivering and drowsy from cold. How do I help? | How is a chilled body warmed?
> Move the person out of the wind, swap wet clothes for [dry] ones and wrap [blankets] around the body. Give
a warm, sweet drink if awake, no alcohol, and get medical help.

frostbite | My toes turned white and numb in the snow. What now? | How are frozen fingers treated?
> Go indoors and warm the part slowly in water that feels warm, not hot. Please do not [rub] it, and do not
[thaw] it while it might freeze again. Have it seen by a doctor.

sunburn | My shoulders are red after the beach. What soothes them? |
How do you care for skin after too much sun?
> Get out of the sun, cool the skin with a [wet cloth], use a light moisturiser and drink plenty of water.
Leave blisters closed, and see a doctor if there is fever or much blistering.

a blister on the foot | New shoes gave me a blister. Do I pop it? | How is a blister kept clean?
> It is best to leave the blister [closed], since the skin protects it from germs. Cover it with a soft
padded [plaster], and wear other shoes until it has healed.

a splinter | There is a piece of wood in my thumb. How do I get it out? |
What does one use to pull splinters?
> Wash the skin with [soap], then pull the splinter out with clean [tweezers] in the direction in which it
went in. Clean it again afterwards, and see a doctor if it sits deep.

a chemical in the eye | Cleaner splashed into my eye. What now? | How long should an eye be rinsed?
> Rinse the eye at once with plenty of clean [water] for at least [15 minutes], holding the lids open. Take
out contact lenses, do not rub, and get medical help while you keep rinsing.

dust in the eye | Something small got under my eyelid. How do I remove it? |
Can one rub an itchy, gritty eye?
> Please do not rub. [Blink] several times and [rinse] the eye with clean water, looking up and down. If it
still hurts or you see badly after that, have a doctor look at it.

a knocked-out tooth | My front tooth fell out in a game. Can it be saved? |
How do you keep a lost tooth alive?
> Hold the tooth by its crown, not its root, and keep it moist in cold [milk]. See a [dentist] within the
hour, since an adult tooth can often be put back.

an electric shock | He touched a live wire. How do I help him? | What is switched off first after a shock?
> Do not touch the person before the [power] is off: pull the plug or switch the fuse. Then call an
[ambulance] and check the breathing, as the heart may be affected later.

a blow to the head | I fell and hit my head. When is it serious? | What are warning signs of concussion?
> Rest, cool the bump and let someone stay with you for a day. [Vomiting], [confusion], a growing headache
or great sleepiness are warning signs, and you should then go to hospital at once.

a dog bite | A dog bit me in the calf. What should I do? | Why should animal bites be seen by a doctor?
> Wash the wound with [soap] and running water for several minutes and cover it with a clean dressing.
Please see a doctor the same day, as bites infect easily and may need a [vaccine].

a snake bite | A snake bit my leg on a walk. What do I do? | Should one suck venom out?
> Keep [still], take off rings and shoes, and call an [ambulance]. Do not cut the skin, suck the wound or
tie the limb off; hold it quiet and remember what the snake looked like.

carbon monoxide | The alarm rings and we all have headaches. What now? |
How can a faulty heater poison us?
> Leave the room at once, get everyone into [fresh air] and call the emergency number from outside. The gas
has no smell, so please keep an alarm near heaters and have them serviced.

diarrhoea | I have had loose stools all day. What do I drink? | How is fluid replaced in a stomach bug?
> Drink often and in small [sips], best of all an oral [rehydration] solution with sugar and salts. See a
doctor if there is blood, high fever or no improvement after two days.

a fever | I have 38.5 degrees. How do I get through the night? |
When is a high temperature a matter for a doctor?
> [Rest], drink plenty of water and wear light clothes; paracetamol as directed can ease it. Call a doctor
if it lasts more than [three days], or sooner for a small baby.

a common cold | My nose runs and I sneeze. Do I need antibiotics? | How long does a cold last?
> A cold is caused by [viruses], so antibiotic pills do not help. Rest, drink enough and give it time: it
mostly passes within seven to [ten days]. See a doctor if breathing becomes hard.

a sore throat | It hurts when I swallow. What eases it? | What can one gargle with?
> Gargle with warm [salt water], take warm or cold drinks and rest your voice. If it lasts over a week, or
you cannot swallow or breathe well, please see a doctor.

a cough at night | What calms a cough for sleeping? | Can honey be given for coughing?
> A spoon of honey in a warm drink often calms a cough, though never for babies under [one year]. Raise your
head with a pillow, and see a doctor if it lasts over [three weeks].

constipation | I have not been able to go for days. What helps? | Which habits keep the gut regular?
> Eat more [fibre], such as whole grains, fruit and beans, drink enough [water] and move every day. Please
see a doctor if it goes on for weeks or if there is blood.

trouble sleeping | I lie awake for hours. What can I change? | Which evening habits make sleep easier?
> Go to bed and get up at the [same time] each day, keep the room dark and cool, and avoid [coffee] and
screens late. If it lasts for weeks, please talk to a doctor.

muscle cramp | My calf cramps at night. What helps? | How do runners get rid of cramps?
> [Stretch] the muscle slowly, [massage] it and hold it warm. Drinking enough and gentle stretching before
bed can prevent it. If it comes back often, a doctor should look for the cause.

back pain | My lower back hurts after lifting. Should I stay in bed? | What eases a stiff back?
> Staying active with gentle [walks] helps more than lying down for long. Warmth can ease the muscles. If a
leg goes numb or you lose control of the bladder, get help at once.

travel sickness | I feel sick in cars. What can I do? | Where should one look against motion sickness?
> Look at the [horizon], sit in front or in the middle of a ship, and let in [fresh air]. Do not read on the
way, and eat only a little before you leave.

hand washing | How long should I wash my hands? | When do hands need a wash?
> Wash your hands with [soap] for at least [20 seconds], between the fingers too, and dry them well. Do so
before you eat or cook, and after the toilet, coughing or touching animals.

cooking chicken safely | How hot must chicken be inside? | Why must poultry be cooked through?
> Heat poultry until its core has reached [74] degrees Celsius, which kills [salmonella] and other germs.
Use a separate board for raw meat, and please wash your hands after you touch it.

leftovers | How soon should cooked food go into the fridge? | How do I store what remains of dinner?
> Put cooked food into the fridge within [two hours] and keep it at 5 degrees Celsius or below. Eat it
within a few days, and heat it until it steams all the way through.

salt in food | How much salt a day is healthy? | Why cut down on salty snacks?
> Adults should stay under [5 grams] a day, about a teaspoon, counting what is in bread and ready meals. Too
much raises [blood pressure], so try herbs and lemon for taste instead.

sugar in food | How much added sugar is too much? | Why do dentists warn of sweets?
> Added sugar should give less than [10 percent] of your daily energy, which is about 50 grams for an adult.
It harms [teeth] and adds weight, so water is the better drink.

fruit and vegetables | How many portions of greens a day are advised? | Why eat plants of many colours?
> Try to eat at least [five portions] a day, or about [400 grams] in all. They bring vitamins and fibre, and
people who eat more of them have less heart disease on average.

exercise | How much should I move each week? | Is brisk walking enough sport for an adult?
> Adults do well with at least [150 minutes] of moderate activity a week, such as brisk walks, and two days
that train the muscles. Start slowly, and ask your doctor first if you have a heart condition.

the need for sleep | How many hours of sleep does an adult need? | Is six hours a night enough?
> Most adults need [seven to nine hours] of sleep a night, and children need more. If you feel tired all day
in spite of long nights, it is wise to talk to a doctor.

calories in fat | How much energy is in a gram of fat? | Which nutrient has most calories per gram?
> Fat gives about [9] kilocalories per gram, more than twice as much as starch, sugar or protein with 4
each. Plant oils and nuts are the kinder choice for your heart.

calories in carbohydrates | How much energy is in a gram of starch? |
What do sugar and protein yield per gram?
> Carbohydrates give about [4] kilocalories per gram, just as protein does, while fat gives 9. Whole grains
are a gentle choice, since their energy reaches your blood slowly.

thirst | How much should an adult drink a day? | Which drink is best for hot days?
> About one and a half to two litres a day suit most adults, and more in heat or sport. [Water] is the best
choice. Dark urine is a sign that you should drink more.

normal blood pressure | Is my reading of 115 over 75 good? |
What does a healthy pressure reading look like?
> A value below about [120 over 80] is seen as normal for adults. Readings of 140 over 90 or more, taken on
several days, count as high almost everywhere, so please have them checked.

normal body temperature | How warm is a healthy person? | From which value do we speak of fever?
> A healthy body has about [37] degrees Celsius, a little less in the morning. From [38] degrees on we speak
of fever; please rest and drink, and call a doctor if you feel very ill.

the resting pulse | How fast should my heart beat at rest? | Is a pulse of 75 normal?
> At rest the heart of an adult beats [60 to 100] times a minute, and slower in trained people. If yours is
often outside this range or irregular, please let a doctor check it.

brushing teeth | How often should I brush? | Which toothpaste protects from holes?
> Brush your teeth [twice a day] for two minutes with a [fluoride] toothpaste, and clean between them daily.
A visit to the dentist each year finds trouble before it hurts.

sun protection | Which sunscreen should I use? | At what time of day is the sun strongest?
> Stay in the [shade] around midday, wear a hat and use a sunscreen of factor [30] or more, renewed every
two hours. Babies should not be in direct sun at all.

head lice | My daughter has lice. Is it because of dirt? | How are nits removed?
> Lice have nothing to do with dirt. [Comb] the [wet hair] with a fine comb every few days for two weeks, or
use a lotion from the pharmacy, and check the whole family.
""")
