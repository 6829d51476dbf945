//! Runs a target: over its corpus, or in libFuzzer.

use std::path::Path;

/// Runs a target over the files of its corpus. In the build of `scripts/fuzz` libFuzzer runs it instead, for FUZZ_SECONDS, and
/// ends the process.
pub fn run(target: &str, corpus: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(corpus);
    #[cfg(fuzzing)]
    return libfuzzer::run(target, &corpus, check);
    #[cfg(not(fuzzing))]
    replay(target, &corpus, check);
}

#[cfg(not(fuzzing))]
fn replay(target: &str, corpus: &Path, check: fn(&[u8])) {
    let mut files: Vec<_> = corpus.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    for file in files {
        // Shown if the target fails.
        println!("{target}: {}", file.display());
        check(&std::fs::read(file).unwrap());
    }
}

#[cfg(fuzzing)]
#[allow(unsafe_code)]
mod libfuzzer {
    use std::ffi::{CString, c_char, c_int};
    use std::path::Path;
    use std::sync::OnceLock;

    static CHECK: OnceLock<fn(&[u8])> = OnceLock::new();

    unsafe extern "C" {
        /// <https://llvm.org/docs/LibFuzzer.html#using-libfuzzer-as-a-library>
        fn LLVMFuzzerRunDriver(
            argc: *mut c_int,
            argv: *mut *mut *mut c_char,
            check: extern "C" fn(*const u8, usize) -> c_int,
        ) -> c_int;
    }

    extern "C" fn check(data: *const u8, length: usize) -> c_int {
        // SAFETY: libFuzzer calls this with an input of this length.
        let data = if length == 0 { &[] } else { unsafe { std::slice::from_raw_parts(data, length) } };
        CHECK.get().unwrap()(data);
        0
    }

    /// Looks for inputs that reach more, starting from those in `corpus` and those that earlier runs have found, which are kept
    /// in the directory FUZZ_DIR. Ends the process: with an error, and the input in a file there, if the target panics.
    pub fn run(target: &str, corpus: &Path, run: fn(&[u8])) {
        CHECK.set(run).unwrap();
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            print(panic);
            // Also where the panic would be caught: a handler must not panic either.
            std::process::abort();
        }));
        let variable = |name| std::env::var(name).unwrap();
        let found = Path::new(&variable("FUZZ_DIR")).join(target);
        std::fs::create_dir_all(&found).unwrap();
        let arguments = [
            "fuzz".to_owned(),
            format!("-max_total_time={}", variable("FUZZ_SECONDS")),
            format!("-artifact_prefix={}-", found.display()),
            concat!("-dict=", env!("CARGO_MANIFEST_DIR"), "/words.dict").to_owned(),
            "-max_len=4096".to_owned(),
            "-timeout=20".to_owned(),
            "-print_final_stats=1".to_owned(),
            found.display().to_string(),
            corpus.display().to_string(),
        ];
        let arguments = arguments.map(|argument| CString::new(argument).unwrap());
        let mut pointers: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
        pointers.push(std::ptr::null_mut());
        let (mut count, mut arguments) = (arguments.len() as c_int, pointers.as_mut_ptr());
        // SAFETY: both point to a list as main() gets it, which outlives the call.
        std::process::exit(unsafe { LLVMFuzzerRunDriver(&mut count, &mut arguments, check) });
    }
}
