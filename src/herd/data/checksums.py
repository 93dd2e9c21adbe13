"""Check digits of account and identity numbers: what tells such a number from any other of its length.

Each function takes a number without spaces, dots and hyphens, and says whether it may have been given out. Where a
number's shape is not fixed by the caller's pattern, another shape is no error and answers false.
"""

from __future__ import annotations

# Characters of an account number by country (ISO 13616, registry of SWIFT).
IBAN_LENGTHS = {
    "AD": 24,
    "AE": 23,
    "AL": 28,
    "AT": 20,
    "AZ": 28,
    "BA": 20,
    "BE": 16,
    "BG": 22,
    "BH": 22,
    "BI": 27,
    "BR": 29,
    "BY": 28,
    "CH": 21,
    "CR": 22,
    "CY": 28,
    "CZ": 24,
    "DE": 22,
    "DJ": 27,
    "DK": 18,
    "DO": 28,
    "EE": 20,
    "EG": 29,
    "ES": 24,
    "FI": 18,
    "FK": 18,
    "FO": 18,
    "FR": 27,
    "GB": 22,
    "GE": 22,
    "GI": 23,
    "GL": 18,
    "GR": 27,
    "GT": 28,
    "HR": 21,
    "HU": 28,
    "IE": 22,
    "IL": 23,
    "IQ": 23,
    "IS": 26,
    "IT": 27,
    "JO": 30,
    "KW": 30,
    "KZ": 20,
    "LB": 28,
    "LC": 32,
    "LI": 21,
    "LT": 20,
    "LU": 20,
    "LV": 21,
    "LY": 25,
    "MC": 27,
    "MD": 24,
    "ME": 22,
    "MK": 19,
    "MN": 20,
    "MR": 27,
    "MT": 31,
    "MU": 30,
    "NI": 28,
    "NL": 18,
    "NO": 15,
    "OM": 23,
    "PK": 24,
    "PL": 28,
    "PS": 29,
    "PT": 25,
    "QA": 29,
    "RO": 24,
    "RS": 22,
    "RU": 33,
    "SA": 24,
    "SC": 31,
    "SD": 18,
    "SE": 24,
    "SI": 19,
    "SK": 24,
    "SM": 27,
    "SO": 23,
    "ST": 25,
    "SV": 28,
    "TL": 23,
    "TN": 24,
    "TR": 26,
    "UA": 29,
    "VA": 22,
    "VG": 24,
    "XK": 20,
}

_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
# Codice fiscale: values of characters at odd places, counted from one (decree of 23 December 1976).
_ODD = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True)) | dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)
# Multiplication of the dihedral group of order 10, and the permutation of Verhoeff's code.
_TIMES = [[(a + b) % 5 + 5 * (b >= 5) if a < 5 else (a - b) % 5 + 5 * (b < 5) for b in range(10)] for a in range(10)]
_VERHOEFF = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def luhn(digits: str) -> bool:
    """Payment cards (ISO/IEC 7812)."""
    values = [int(c) for c in digits[::-1]]
    return sum(values[0::2]) % 10 == (-sum(d * 2 - 9 * (d > 4) for d in values[1::2])) % 10


def iban(text: str) -> bool:
    """Account numbers, in capital letters: length by country, and remainder 1 modulo 97."""
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def us_ssn(digits: str) -> bool:
    """Social Security numbers have no check digit; some ranges are never given out, nor the two that adverts showed."""
    if len(digits) != 9 or not digits.isdigit():
        return False
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    never = area in ("000", "666") or area >= "900" or group == "00" or serial == "0000"
    return not never and digits not in ("078051120", "219099999", "123456789")


def uk_nino(text: str) -> bool:
    """National Insurance numbers have no check digit; some prefixes are never given out."""
    prefix = text[:2]
    if not prefix.isalpha():
        return False
    return (
        prefix[0] not in "DFIQUV"
        and prefix[1] not in "DFIOQUV"
        and prefix not in ["BG", "GB", "KN", "NK", "NT", "TN", "ZZ"]
    )


def french_nir(text: str) -> bool:
    """Numéro de sécurité sociale, 13 characters and two digits: 97 minus the remainder modulo 97; Corsica is 2A, 2B."""
    number = text[:13].replace("2A", "19").replace("2B", "18")
    month = int(text[3:5])
    return (1 <= month <= 12 or 20 <= month <= 42 or month >= 50) and 97 - int(number) % 97 == int(text[13:])


def spanish_dni(text: str) -> bool:
    """DNI (eight digits and a letter) and NIE (X, Y or Z, seven digits and a letter)."""
    number = text[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return len(number) == 8 and number.isdigit() and _DNI_LETTERS[int(number) % 23] == text[-1]


def italian_codice(text: str) -> bool:
    """Codice fiscale: its last letter is a sum over the fifteen characters before."""
    total = sum(int(c, 36) - 10 * c.isalpha() if i % 2 else _ODD[c] for i, c in enumerate(text[:15]))
    return chr(65 + total % 26) == text[15]


def german_tax_id(digits: str) -> bool:
    """Steuer-ID: among ten digits one is there twice or thrice and no other twice; ISO 7064 MOD 11,10."""
    if len(digits) != 11 or not digits.isdigit():
        return False
    repeats = sorted(digits[:10].count(d) for d in set(digits[:10]))
    if digits[0] == "0" or repeats[-1] not in (2, 3) or repeats[-2] != 1:
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def brazilian_cpf(digits: str) -> bool:
    """CPF: two check digits modulo 11; eleven equal digits pass the sum and are never given out."""
    if len(digits) != 11 or not digits.isdigit() or len(set(digits)) == 1:
        return False
    for length in (9, 10):
        total = sum(int(d) * (length + 1 - i) for i, d in enumerate(digits[:length]))
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return True


def dutch_bsn(digits: str) -> bool:
    """Burgerservicenummer: the sum with weights 9 to 2 and -1 is a multiple of 11."""
    if len(digits) != 9 or not digits.isdigit():
        return False
    return sum(int(d) * w for d, w in zip(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1), strict=True)) % 11 == 0


def aadhaar(digits: str) -> bool:
    """Aadhaar: twelve digits, the first 2 to 9, with Verhoeff's check digit."""
    return len(digits) == 12 and digits.isdigit() and digits[0] in "23456789" and verhoeff(digits)


def verhoeff(digits: str) -> bool:
    """Whether the last digit checks the others (Verhoeff 1969)."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(place % 8):
            value = _VERHOEFF[value]
        check = _TIMES[check][value]
    return check == 0
