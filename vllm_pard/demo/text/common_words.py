"""Everyday and Python words that only the tokenizer sees: free prompts split into fewer tokens with them."""

from __future__ import annotations

__all__ = ["COMMON_WORDS"]

_TEXT = """
about above across after again against almost along already also although always among another answer any anyone
anything around ask away back because become before began begin behind being believe below beside best better
between beyond big black blue body both bottle bought bread bring broken brother brown build building business call
came carry cause center certain chair chance chapter check child children circle city class clean clear close
clothes cold color come common company compare complete computer contain cook corner correct could country couple
course cover create cross daily dark daughter decide deep describe design desk different difficult direction
distance doctor door double down draw dream dress drink drive during early earth easy empty enough entire evening
ever every everyone everything exactly example except expect explain face fact fair fall family famous far fast
father feel few field figure fill final find fine finger finish fire fish five floor follow food foot force foreign
forest form forward found four free friend front full further game general girl glass good government grand great
green ground group grow guess hair half hand happen happy hard head health hear heart heavy height hello help high
history hold home horse hospital hour house however hundred hungry idea important inside interest island join
journey jump just keep kind kitchen know language large last later laugh law learn least leave left length letter
light like little live local lost love lunch machine main make many matter mean measure meat middle might milk
million minute miss modern moment money month moon more morning most mother mountain mouth move much music must
near necessary need neighbor never next night nine nothing notice ocean offer office often once only open opposite
order other outside paint paper parent park part pass pattern peace perfect perhaps piece picture plan plane plant
play please position possible power present press pretty problem produce product program promise proper provide
public purple quarter queen quick quiet quite rabbit rain reach ready real reason receive remember repeat result
return rice right river road rock room round rule salt same sand season second seem sentence separate serve seven
several shape share sharp ship shoe shop short should shoulder show side silver simple since sister six sleep slow
small smile snow soft some someone something son soon sound south space special spring square stand star start
state still stone store story straight strange stream street strong student study subject sugar suggest summer
surface sure surprise sweet swim system table take talk teacher team tell temperature ten thank there these thing
think third those though thought thousand three through tired today toe together tomorrow tonight touch toward town
travel tree triangle trouble true try turn twelve twenty two uncle under understand until use usual valley various
very village visit voice wait wall want warm wash watch water wave way weather well were west what wheel when where
whether which while white whole whose why wide wife wild wind window winter wish without woman wonder wood word
work world would write wrong year yellow yes yesterday young append assert async await break class continue default
delete dictionary else except filter float format function global import index insert integer isinstance items keys
lambda length lines list lower maximum minimum module object output parameter print property range raise replace
reverse reversed self slice sorted split string strip tuple type upper values variable while with yield zip
"""

COMMON_WORDS = tuple(_TEXT.split())
