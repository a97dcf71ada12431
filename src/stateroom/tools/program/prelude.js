// The inner end of the bridge between a program and its tools. Evaluates to one function, `bridge(what, line)`.
//
// Whatever of the language it needs it takes before the program runs, and what leaves it is put together from strings:
// a program that rewrites the built-in objects confuses itself only. Everything that differs from one run to the next
// (time, chance, the order in which tools are done, what is collected when) is taken away or fixed, so that a program
// does the same again when it gets the same answers.
(() => {
  "use strict";
  const { stringify, parse } = JSON;
  const { apply, construct } = Reflect;
  const { create, freeze, defineProperty, setPrototypeOf } = Object;
  const { then } = Promise.prototype;
  const { trimStart, toWellFormed, charCodeAt, slice } = String.prototype;
  const { isArray } = Array;
  const NativePromise = Promise, NativeDate = Date, NativeError = Error, NativeProxy = Proxy;
  const NativeString = String, NativeTypeError = TypeError, NativeRangeError = RangeError;
  const evaluate = (0, eval);

  const pending = create(null);        // position -> how to settle it
  const timers = create(null);         // number -> what to call, and after how much
  let told = null, position = 0, outstanding = 0, timer = 0, timersLeft = 0, waiting = 0;
  let state = "running", error = "";
  let calls = "", texts = "", logs = "", textLeft = 0, logLeft = 0, argumentLeft = 0, cut = false;

  const quoted = (text) => stringify(apply(toWellFormed, text, []));
  const hide = (value) => freeze(setPrototypeOf(value, null));

  // What a program says, as text.
  const shown = (value) => {
    if (typeof value === "string") return value;
    if (value === undefined || typeof value === "function" || typeof value === "symbol" || typeof value === "bigint") {
      return NativeString(value);
    }
    if (value instanceof NativeError) return `${value}`;
    const text = stringify(value);
    return text === undefined ? NativeString(value) : text;
  };

  const within = (text, left) => {
    if (text.length <= left) return text;
    cut = true;
    return apply(slice, text, [0, left]);
  };

  const say = (value) => {
    if (state !== "running") return;
    const text = within(shown(value), textLeft);
    textLeft -= text.length;
    texts += (texts ? "," : "") + quoted(text);
  };

  const log = (...values) => {
    if (state !== "running") return;
    let line = "";
    for (let at = 0; at < values.length; at++) line += (at ? " " : "") + shown(values[at]);
    line = within(line, logLeft);
    logLeft -= line.length;
    logs += (logs ? "," : "") + quoted(line);
  };

  // One call of a tool.
  const call = (tool, given) => new NativePromise((resolve, reject) => {
    if (state !== "running") return;
    let line;
    if (tool.text) {
      if (typeof given !== "string") throw new NativeTypeError(`${tool.name} takes one text`);
      line = given;
    } else {
      if (given === undefined) given = create(null);
      if (given === null || typeof given !== "object" || isArray(given)) {
        throw new NativeTypeError(`${tool.name} takes one object with its arguments`);
      }
      line = stringify(given);
      if (typeof line !== "string" || line[0] !== "{") {
        throw new NativeTypeError(`${tool.name} takes one object with its arguments`);
      }
    }
    if (line.length > argumentLeft) throw new NativeRangeError("The arguments of the program's calls are too long");
    if (position >= told.calls) throw new NativeRangeError(`A program may make no more than ${told.calls} tool calls`);
    argumentLeft -= line.length;
    pending[position++] = hide({ resolve, reject, tool });
    outstanding++;
    calls += (calls ? "," : "") + `{"name":${quoted(tool.name)},"arguments":${quoted(line)}}`;
  });

  const settle = (answer) => {
    const { resolve, reject, tool } = pending[answer.position];
    delete pending[answer.position];
    outstanding--;
    if (answer.failed) {
      const failure = new NativeError(answer.result);
      defineProperty(failure, "name", hide({ value: "ToolError" }));
      return reject(failure);
    }
    const start = apply(trimStart, answer.result, [])[0];
    if (!tool.text && (tool.typed || start === "{" || start === "[")) {
      let value;
      try {
        value = parse(answer.result);
      } catch {
        return resolve(answer.result);
      }
      return resolve(value);
    }
    return resolve(answer.result);
  };

  // Timers: those without a delay when nothing else is left to do, the others only when no tool is at work any more,
  // because time stands still meanwhile.
  const later = (delayed) => (what, delay, ...values) => {
    if (typeof what !== "function") throw new NativeTypeError("a timer needs a function");
    if (timersLeft-- <= 0) throw new NativeRangeError("too many timers");
    const after = delayed && delay > 0 ? +delay : 0;
    timers[++timer] = hide({ what, values, at: now + after, delayed: after > 0 });
    waiting++;
    return timer;
  };
  let now = 0;
  const forget = (number) => {
    if (timers[number]) {
      delete timers[number];
      waiting--;
    }
  };
  const tick = () => {
    if (state !== "running" || waiting === 0) return false;
    let next = 0;
    for (const number in timers) {
      const candidate = timers[number];
      if (candidate.delayed && outstanding > 0) continue;
      if (next === 0 || candidate.at < timers[next].at) next = number;
    }
    if (next === 0) return false;
    const { what, values, at } = timers[next];
    forget(next);
    if (at > now) now = at;
    apply(what, undefined, values);
    return true;
  };

  const end = (value) => {
    if (state !== "running") return;
    if (value !== undefined) say(value);
    state = "done";
  };

  const fail = (reason) => {
    if (state !== "running") return;
    state = "failed";
    try {
      const isError = reason instanceof NativeError;
      error = isError ? `${reason}` : reason === null ? "uncaught: null" : `uncaught: ${shown(reason)}`;
      error = apply(slice, error, [0, 4000]);
      if (reason === null) error += ", which may also mean that memory ran out";
      if (isError && typeof reason.stack === "string") error += "\n" + apply(slice, reason.stack, [0, 1500]);
    } catch {
      error = "the program threw something that cannot be shown";
    }
  };

  const seeded = (seed) => {
    // sfc32, started from the text of the seed.
    let a = 0x9e3779b9, b = 0x243f6a88, c = 0xb7e15162, d = 1;
    const next = () => {
      const sum = (a + b + d) | 0;
      d = (d + 1) | 0;
      a = b ^ (b >>> 9);
      b = (c + (c << 3)) | 0;
      c = ((c << 21) | (c >>> 11)) + sum | 0;
      return sum >>> 0;
    };
    for (let at = 0; at < seed.length; at++) {
      a ^= apply(charCodeAt, seed, [at]);
      next();
    }
    for (let at = 0; at < 12; at++) next();
    return () => (next() * 2097152 + (next() >>> 11)) / 9007199254740992;
  };

  const put = (where, name, value) =>
    defineProperty(where, name, hide({ value, writable: true, enumerable: false, configurable: true }));

  const stopTheClock = (time) => {
    function Date(...values) {
      if (new.target === undefined) return new NativeDate(time).toString();
      return construct(NativeDate, values.length === 0 ? [time] : values, new.target);
    }
    put(Date, "now", () => time);
    put(Date, "parse", NativeDate.parse);
    put(Date, "UTC", NativeDate.UTC);
    defineProperty(Date, "length", hide({ value: 7 }));
    defineProperty(Date, "prototype", hide({ value: NativeDate.prototype, writable: false }));
    put(NativeDate.prototype, "constructor", Date);
    put(globalThis, "Date", Date);
  };

  const offer = (tools) => {
    const all = create(null);
    let names = "";
    for (let at = 0; at < tools.length; at++) {
      const tool = hide(tools[at]);
      const fn = async (given) => call(tool, given);
      defineProperty(fn, "name", hide({ value: tool.name }));
      all[tool.name] = freeze(fn);
      if (tool.flat && !(tool.name in globalThis)) put(globalThis, tool.name, fn);
      names += (names ? ", " : "") + tool.name;
    }
    freeze(all);
    const handler = create(null);
    handler.get = (target, name) => {
      if (name in target || typeof name === "symbol" || name === "then" || name === "toJSON") return target[name];
      throw new NativeTypeError(`There is no tool ${name}. There are: ${names}`);
    };
    put(globalThis, "tools", new NativeProxy(all, freeze(handler)));
  };

  const start = (what) => {
    told = what;
    textLeft = told.output_chars;
    logLeft = told.output_chars;
    timersLeft = told.timers;
    argumentLeft = told.argument_chars;
    for (const name of ["performance", "SharedArrayBuffer", "Atomics", "WeakRef", "FinalizationRegistry", "gc"]) {
      delete globalThis[name];
    }
    // It would be shown the functions of this file.
    defineProperty(NativeError, "prepareStackTrace", hide({ value: undefined, writable: false, configurable: false }));
    put(Math, "random", seeded(told.seed));
    stopTheClock(told.time_ms);
    const console = create(null);
    for (const name of ["log", "info", "warn", "error", "debug", "trace"]) console[name] = log;
    put(globalThis, "console", console);
    put(globalThis, "print", log);
    put(globalThis, "text", say);
    put(globalThis, "image", () => {
      throw new NativeTypeError("image() is not available here: put out text");
    });
    put(globalThis, "setTimeout", later(true));
    put(globalThis, "setImmediate", later(false));
    put(globalThis, "clearTimeout", forget);
    put(globalThis, "clearImmediate", forget);
    offer(told.tools);
    let main;
    try {
      main = evaluate(`(async () => {${told.code}\n})`);
      if (typeof main !== "function") throw new SyntaxError("the program is not the body of a function");
      main = main();
    } catch (reason) {
      return fail(reason);
    }
    const ended = (value) => {
      try {
        end(value);
      } catch (reason) {
        fail(reason);
      }
    };
    apply(then, (async () => main)(), [ended, fail]);
  };

  // All that came about since it was last asked.
  const report = () => {
    if (state === "running" && outstanding === 0) {
      state = "failed";
      error = "The program waits for something that will never happen";
    }
    const line = `{"state":"${state}","calls":[${calls}],"texts":[${texts}],"logs":[${logs}],` +
      `"cut":${cut},"error":${quoted(error)}}`;
    calls = texts = logs = "";
    return apply(slice, line, [0]);  // in one piece: what concatenation gives is not, and the host reads no other
  };

  return (what, line) => {
    if (what === "start") return start(parse(line));
    if (what === "settle") return settle(parse(line));
    if (what === "tick") {
      try {
        return tick();
      } catch (reason) {
        fail(reason);  // a timer that throws ends the program, as an uncaught exception would
        return false;
      }
    }
    return report();
  };
})();
