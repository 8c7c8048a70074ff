import { hex } from './units.ts';

/**
 * Struct tables: one line per field with its offset as in the specification. From a table come the type, read, write and the
 * offset for errors. Gaps and overlaps are found when the table is made, so a slip of a digit does not wait for a test.
 *
 * For what is read at most once per open or login. Entries that are met per request use fixed offsets on a kept view.
 */
export interface Field<T> {
  readonly at: number;
  readonly length: number;
  read(view: DataView, at: number, littleEndian: boolean): T;
  write(view: DataView, at: number, value: T, littleEndian: boolean): void;
}

/** The two halves of a 64-bit field that is a set of bits. */
export interface Bits64 {
  readonly high: number;
  readonly low: number;
}

export function u8(at: number): Field<number> {
  return { at, length: 1, read: (v, o) => v.getUint8(o), write: (v, o, n) => v.setUint8(o, n) };
}

export function u16(at: number): Field<number> {
  return { at, length: 2, read: (v, o, le) => v.getUint16(o, le), write: (v, o, n, le) => v.setUint16(o, n, le) };
}

export function u32(at: number): Field<number> {
  return { at, length: 4, read: (v, o, le) => v.getUint32(o, le), write: (v, o, n, le) => v.setUint32(o, n, le) };
}

/** A 64-bit offset, size or count. Values of 2^53 and more read as Infinity, so that every upper bound refuses them. */
export function u64(at: number): Field<number> {
  return {
    at,
    length: 8,
    read: (v, o, le) => {
      const high = v.getUint32(le ? o + 4 : o, le);
      const low = v.getUint32(le ? o : o + 4, le);
      return high >= 0x200000 ? Number.POSITIVE_INFINITY : high * 0x100000000 + low;
    },
    write: (v, o, n, le) => {
      if (!Number.isSafeInteger(n) || n < 0)
        throw new RangeError(`u64 field at ${at}: ${n} is no exact unsigned integer`);
      v.setUint32(le ? o + 4 : o, Math.floor(n / 0x100000000), le);
      v.setUint32(le ? o : o + 4, n % 0x100000000, le);
    },
  };
}

/** A 64-bit set of flags. */
export function bits64(at: number): Field<Bits64> {
  return {
    at,
    length: 8,
    read: (v, o, le) => ({ high: v.getUint32(le ? o + 4 : o, le), low: v.getUint32(le ? o : o + 4, le) }),
    write: (v, o, n, le) => {
      v.setUint32(le ? o + 4 : o, n.high, le);
      v.setUint32(le ? o : o + 4, n.low, le);
    },
  };
}

/** Bytes as they are; read as a copy. */
export function bytes(at: number, length: number): Field<Uint8Array> {
  return {
    at,
    length,
    read: (v, o) => new Uint8Array(v.buffer, v.byteOffset + o, length).slice(),
    write: (v, o, value) => {
      if (value.length !== length) throw new RangeError(`field at ${at}: ${value.length} bytes instead of ${length}`);
      new Uint8Array(v.buffer, v.byteOffset + o, length).set(value);
    },
  };
}

/** Reserved space: not in the type; written as zeros by encode(), left alone by write(). */
export function reserved(at: number, length: number): Field<undefined> {
  return { at, length, read: () => undefined, write: () => undefined };
}

type Values<F extends Record<string, Field<unknown>>> = {
  -readonly [K in keyof F as F[K] extends Field<undefined> ? never : K]: F[K] extends Field<infer T> ? T : never;
};

export class Struct<F extends Record<string, Field<unknown>>> {
  readonly name: string;
  readonly size: number;
  readonly fields: F;
  readonly littleEndian: boolean;

  constructor(name: string, options: { size: number; endian: 'big' | 'little' }, fields: F) {
    this.name = name;
    this.size = options.size;
    this.fields = fields;
    this.littleEndian = options.endian === 'little';
    let end = 0;
    for (const [key, field] of Object.entries(fields).sort(([, a], [, b]) => a.at - b.at)) {
      if (field.at !== end)
        throw new RangeError(`${name}: ${key} is at ${hex(field.at)}, the field before it ends at ${hex(end)}`);
      end = field.at + field.length;
    }
    if (end !== options.size)
      throw new RangeError(`${name}: the fields end at ${hex(end)}, not at ${hex(options.size)}`);
  }

  /** Decodes all fields. The view must hold `size` bytes at `at`: @throws {RangeError} else. */
  read(view: DataView, at = 0): Values<F> {
    const result: Record<string, unknown> = {};
    for (const [key, field] of Object.entries(this.fields)) {
      const value = field.read(view, at + field.at, this.littleEndian);
      if (value !== undefined) result[key] = value;
    }
    return result as Values<F>;
  }

  /** Writes the given fields in place; others and reserved space stay as they are. */
  write(view: DataView, values: Partial<Values<F>>, at = 0): void {
    for (const [key, value] of Object.entries(values)) {
      const field = this.fields[key];
      if (field === undefined) throw new RangeError(`${this.name} has no field ${key}`);
      field.write(view, at + field.at, value, this.littleEndian);
    }
  }

  /** A new buffer with all fields; reserved space is zero. */
  encode(values: Values<F>): Uint8Array {
    const buffer = new Uint8Array(this.size);
    this.write(new DataView(buffer.buffer), values as unknown as Partial<Values<F>>);
    return buffer;
  }
}

/** The value type of a struct table. */
export type StructOf<S> = S extends Struct<infer F> ? Values<F> : never;
