#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| longshore::admin::laws::hold(input));
