import type { StreamOptions } from '../../formats/index.ts';

/** Options of new VMDK images as far as streams have them, checked: see readCreateValues. */
export type StreamValues = Readonly<Record<string, unknown>>;

/** What the writer of streams takes, from the options of a new image. */
export function streamOptions(values: StreamValues): Pick<StreamOptions, 'adapterType' | 'hwVersion' | 'toolsVersion'> {
  return {
    adapterType: values.adapter_type as never,
    ...(values.hwversion === undefined ? {} : { hwVersion: String(values.hwversion) }),
    ...(values.toolsversion === undefined ? {} : { toolsVersion: String(values.toolsversion) }),
  };
}
