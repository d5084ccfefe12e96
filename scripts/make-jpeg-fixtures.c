/* Writes JPEGs of every kind with libjpeg-turbo. Each line of the input: FILE WIDTH HEIGHT COLOURS SAMPLING SCANS RESTART QUALITY CODER MARKERS
   COLOURS  grey ycc rgb cmyk ycck
   SAMPLING 2x2,1x1,1x1: samples across x down of each component
   SCANS    -, progressive, or 0,1:0-63-0-0/2:0-63-0-0: components, first and last coefficient, high and low bit of each scan
   CODER    huffman, optimal, arithmetic
   MARKERS  any of j (JFIF) and a (Adobe), or - */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jpeglib.h>

static unsigned noise(unsigned *state) { return (*state = *state * 1664525u + 1013904223u) >> 24; }

int main(void) {
    char path[512], colours[16], sampling[64], scans[2048], coder[16], markers[8];
    int width, height, restart, quality;
    while (scanf("%511s %d %d %15s %63s %2047s %d %d %15s %7s", path, &width, &height, colours, sampling, scans, &restart, &quality, coder,
                 markers) == 10) {
        struct jpeg_compress_struct info;
        struct jpeg_error_mgr errors;
        jpeg_scan_info list[64];
        info.err = jpeg_std_error(&errors);
        jpeg_create_compress(&info);
        FILE *file = fopen(path, "wb");
        if (!file) return perror(path), 1;
        jpeg_stdio_dest(&info, file);
        int is_grey = !strcmp(colours, "grey"), is_four = !strcmp(colours, "cmyk") || !strcmp(colours, "ycck");
        info.image_width = width;
        info.image_height = height;
        info.input_components = is_grey ? 1 : is_four ? 4 : 3;
        info.in_color_space = is_grey ? JCS_GRAYSCALE : is_four ? JCS_CMYK : JCS_RGB;
        jpeg_set_defaults(&info);
        jpeg_set_colorspace(&info, is_grey ? JCS_GRAYSCALE : !strcmp(colours, "ycc") ? JCS_YCbCr : !strcmp(colours, "rgb") ? JCS_RGB
                                  : !strcmp(colours, "cmyk") ? JCS_CMYK : JCS_YCCK);
        jpeg_set_quality(&info, quality, FALSE);
        char *next = sampling;
        for (int i = 0; i < info.num_components; i++) {
            info.comp_info[i].h_samp_factor = strtol(next, &next, 10);
            info.comp_info[i].v_samp_factor = strtol(next + 1, &next, 10);
            next += *next == ',';
        }
        if (!strcmp(scans, "progressive")) jpeg_simple_progression(&info);
        else if (strcmp(scans, "-")) {
            int count = 0;
            for (char *place = scans; *place; count++) {
                jpeg_scan_info *scan = &list[count];
                scan->comps_in_scan = 0;
                do scan->component_index[scan->comps_in_scan++] = strtol(place, &place, 10); while (*place++ == ',');
                scan->Ss = strtol(place, &place, 10);
                scan->Se = strtol(place + 1, &place, 10);
                scan->Ah = strtol(place + 1, &place, 10);
                scan->Al = strtol(place + 1, &place, 10);
                place += *place == '/';
            }
            info.scan_info = list;
            info.num_scans = count;
        }
        info.restart_interval = restart;
        info.optimize_coding = !strcmp(coder, "optimal");
        info.arith_code = !strcmp(coder, "arithmetic");
        info.write_JFIF_header = !!strchr(markers, 'j');
        info.write_Adobe_marker = !!strchr(markers, 'a');
        jpeg_start_compress(&info, TRUE);
        unsigned state = width * 31 + height;
        JSAMPLE *row = malloc(width * 4);
        for (int y = 0; y < height; y++) {
            for (int x = 0; x < width; x++)
                for (int c = 0; c < info.input_components; c++) {
                    int slope = c == 0 ? 5 * x + 2 * y : c == 1 ? 7 * y - 3 * x : c == 2 ? 255 - 4 * (x + y) : 2 * x + y;
                    int edge = ((x / 5 + y / 7 + c) & 1) * 90;
                    row[x * info.input_components + c] = (slope & 127) + edge + (noise(&state) & 31);
                }
            jpeg_write_scanlines(&info, &row, 1);
        }
        free(row);
        jpeg_finish_compress(&info);
        jpeg_destroy_compress(&info);
        fclose(file);
    }
    return 0;
}
