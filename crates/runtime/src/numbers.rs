//! A compact list of small numbers: the code lengths and frequencies that a coder's table consists of.
//!
//! Either the numbers themselves or the zigzag-mapped differences of neighbours, whichever is shorter, in an Exp-Golomb code of
//! the best order. Histograms of weights and distances are smooth, so that differences often win.

use crate::Error;
use crate::bits::{BitReader, BitWriter, golomb_bits};

/// Order of the code in which the list's length is written.
const LENGTH_ORDER: u32 = 4;
/// Orders 0..16 are tried.
const ORDERS: u32 = 16;

/// Writes the list.
pub(crate) fn put(writer: &mut BitWriter, list: &[u32]) {
    let (_, differences, order) = best(list);
    writer.put_golomb(list.len() as u32, LENGTH_ORDER);
    writer.put(u32::from(differences), 1);
    writer.put(order, 4);
    mapped(list, differences).for_each(|number| writer.put_golomb(number, order));
}

/// Bits that [`put`] takes.
pub(crate) fn cost(list: &[u32]) -> u64 {
    golomb_bits(list.len() as u32, LENGTH_ORDER) + 5 + best(list).0
}

/// Reads a list of at most `limit` numbers.
pub(crate) fn get(reader: &mut BitReader<'_>, limit: usize) -> Result<Vec<u32>, Error> {
    let length = reader.get_golomb(LENGTH_ORDER)? as usize;
    if length > limit {
        return Err(Error::Limit { what: "entries of a table", found: length as u64, limit: limit as u64 });
    }
    let differences = reader.get(1)? == 1;
    let order = reader.get(4)?;
    let mut list = Vec::new();
    let mut last = 0_u32;
    for _ in 0..length {
        let number = reader.get_golomb(order)?;
        last = if differences {
            let step = (number >> 1) as i32 ^ -((number & 1) as i32);
            last.checked_add_signed(step).ok_or_else(|| Error::corrupt("a table holds a negative number"))?
        } else {
            number
        };
        list.push(last);
    }
    Ok(list)
}

/// The cheapest form: its bits, whether differences, the order.
fn best(list: &[u32]) -> (u64, bool, u32) {
    let forms = [false, true].into_iter().flat_map(|differences| (0..ORDERS).map(move |order| (differences, order)));
    forms
        .map(|(differences, order)| {
            (mapped(list, differences).map(|number| golomb_bits(number, order)).sum(), differences, order)
        })
        .min()
        .expect("there are forms")
}

/// The numbers as they are coded.
fn mapped(list: &[u32], differences: bool) -> impl Iterator<Item = u32> + '_ {
    let before = std::iter::once(0).chain(list.iter().copied());
    list.iter().zip(before).map(move |(&number, before)| {
        if !differences {
            return number;
        }
        let step = number.wrapping_sub(before) as i32;
        (step << 1 ^ step >> 31) as u32
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lists_come_back(list in prop::collection::vec(0_u32..100_000, 0..50)) {
            let mut writer = BitWriter::new();
            put(&mut writer, &list);
            prop_assert_eq!(writer.length(), cost(&list));
            let bytes = writer.finish();
            prop_assert_eq!(get(&mut BitReader::new(&bytes), 50).unwrap(), list);
        }
    }
}
